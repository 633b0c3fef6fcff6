"""What the compiler says of the fused kernels on a GPU that need not be there: registers, stack, shared memory.

    python -m lfi_kernels.interaction_attention.triton_report

prints one JSON object a line. It needs triton, and must not run under its interpreter.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lfi_kernels.interaction_attention.blocks import Blocks, Problem, split, tiles
from lfi_kernels.interaction_attention.triton_backward import backward_kernel
from lfi_kernels.interaction_attention.triton_forward import forward_kernel

HEADS = 4
WIDTHS = {"ViT-T": 192, "ViT-S": 384, "ViT-B": 768, "ViT-L": 1024}
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One kernel, compiled for one shape.

    Attributes:
        model: the vision transformer whose width D is taken.
        kernel: `forward` or `backward`.
        dtype: of u and x.
        target: dtype of the target.
        words: M, beside four heads.
        patches: N.
        layer_norm: whether it is folded in.
        registers: of a thread.
        stack_bytes: of a thread: what did not fit into registers.
        spills_in_walks: instructions that reach the stack within the loops over D, where they would cost most.
        shared_kib: of a program.
        hopper_products: matrix instructions of sm_90 (wgmma).
        older_products: matrix instructions of sm_80 (mma), which are slower there.
    """

    model: str
    kernel: str
    dtype: str
    target: str
    words: int
    patches: int
    layer_norm: bool
    registers: int
    stack_bytes: int
    spills_in_walks: int
    shared_kib: float
    hopper_products: int
    older_products: int


def report(
    model: str,
    kernel: Literal["forward", "backward"],
    dtype: str,
    target: str,
    words: int,
    patches: int,
    *,
    layer_norm: bool = True,
    blocks: Blocks | None = None,
    capability: int = 90,
) -> Report:
    """Compile one kernel for the strides of contiguous inputs of a batch that fills the GPU, and read what it takes.

    `blocks` are those of its tiles, if not the usual ones.
    """
    rows, dim = HEADS * words, WIDTHS[model]
    function = {"forward": forward_kernel, "backward": backward_kernel}[kernel]
    if blocks is None:
        sizes = {"rows": rows, "patches": patches, "dim": dim}
        problem = Problem(kernel=kernel, dtype=DTYPES[dtype], target=target, **sizes, layer_norm=layer_norm, fills=True)
        blocks = problem.usual()
    compiled = triton.compile(
        _source(function, blocks, dtype, target, words, patches, dim, layer_norm),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": blocks.warps, "num_stages": blocks.stages},
    )
    registers, stack = _usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return Report(
        model=model,
        kernel=kernel,
        dtype=dtype,
        target=target,
        words=words,
        patches=patches,
        layer_norm=layer_norm,
        registers=registers,
        stack_bytes=stack,
        spills_in_walks=_spills_in_walks(compiled.asm["cubin"]),
        shared_kib=compiled.metadata.shared / 1024,
        hopper_products=len(re.findall(r"wgmma\.mma_async", ptx)),
        older_products=len(re.findall(r"\bmma\.sync", ptx)),
    )


def _source(
    function: Any, blocks: Blocks, dtype: str, target: str, words: int, patches: int, dim: int, layer_norm: bool
) -> Any:
    """The kernel with the arguments that its launcher would give it."""
    rows = HEADS * words
    turns, parts = split(tiles(patches, blocks.patches), samples=1, processors=1)
    is_coded = target == "u8"
    own, wide = dtype, "fp32"
    pointers = {
        **dict.fromkeys(("p_u", "p_x", "p_dz"), own),
        **dict.fromkeys(("p_kl", "p_lse", "p_sum", "p_dkl", "p_weight"), wide),
        **dict.fromkeys(("p_z", "p_du"), own),
        **dict.fromkeys(("p_wide", "p_du_wide"), wide if turns > 1 else None),
        **dict.fromkeys(("p_mean", "p_rstd"), wide if layer_norm else None),
        "p_dx": own,
        "p_dx_wide": wide if rows > blocks.rows else None,
        "p_target": target,
        "p_scale": wide if is_coded else None,
        "p_pad": None,
        "p_h": wide,
    }
    constants: dict[str, Any] = {
        "EVEN": dim % blocks.channels == 0,
        "SQRT": True,
        "ALIGN": math.gcd(16, patches),
        "SPLIT": False,
        "TILES": turns,
        **({"ROW_TILES": tiles(rows, blocks.rows)} if function is backward_kernel else {}),
        "PRECISION": "tf32x3" if dtype == "fp32" else "ieee",
        "BLOCK_R": blocks.rows,
        "BLOCK_N": blocks.patches,
        "BLOCK_D": blocks.channels,
    }
    matrix = {"b": rows * dim, "h": words * dim, "m": dim, "d": 1}
    integers = {
        **{"M": words, "N": patches, "D": dim, "R": rows, "J": parts},
        **({"ROW_TILES": tiles(rows, blocks.rows)} if function is forward_kernel else {}),
        **{f"s_u_{axis}": stride for axis, stride in matrix.items()},
        **{f"s_dz_{axis}": stride for axis, stride in matrix.items()},
        **{"s_x_b": patches * dim, "s_x_n": dim, "s_x_d": 1},
        **{"s_t_b": words * patches, "s_t_m": patches, "s_t_n": 1},
        **{"s_w_b": words, "s_w_m": 1, "s_pad_b": 0, "s_pad_n": 0},
        **{"s_scale_b": words if is_coded else 0, "s_scale_m": int(is_coded)},
        **{"s_dkl_b": rows, "s_dkl_h": words, "s_dkl_m": 1},
    }
    signature: dict[str, str] = {}
    known: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for place, name in enumerate(function.arg_names):
        if name in pointers and pointers[name] is not None:
            signature[name] = f"*{pointers[name]}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif name == "EPS":
            signature[name] = "fp32"
        elif name in integers and integers[name] != 1:
            signature[name] = "i32"
            if integers[name] % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr"
            known[(place,)] = constants.get(name, integers.get(name))
    return ASTSource(function, signature, known, attributes)


def _usage(binary: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    told = _disassembler("cuobjdump", "-res-usage", binary)
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    if found is None:
        raise RuntimeError(f"cuobjdump must name REG and STACK, got {told!r}.")
    return int(found[1]), int(found[2])


def _spills_in_walks(binary: bytes) -> int:
    """Loads and stores of local memory in the innermost loops that copy tiles into shared memory."""
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in _disassembler("nvdisasm", "-c", binary).splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(instruction[1])
    jumps = ((re.search(r"\bBRA\b.*`\((\.L_\w+)\)", text), place) for place, text in enumerate(code))
    loops = [(labels[found[1]], place) for found, place in jumps if found and labels.get(found[1], place) < place]
    inner = [
        (a, b) for a, b in loops if not any((a, b) != other and a <= other[0] and other[1] <= b for other in loops)
    ]
    walks = [code[a : b + 1] for a, b in inner if any("LDGSTS" in text for text in code[a : b + 1])]
    return sum(bool(re.search(r"\b(LDL|STL)", text)) for walk in walks for text in walk)


def _disassembler(name: str, option: str, binary: bytes) -> str:
    """What a tool that comes with triton prints of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        return subprocess.run([str(tool), option, str(file)], capture_output=True, text=True, check=True).stdout


def reports() -> Iterator[Report]:
    """The shapes that students have: each model at 196 patches; other sizes, dtypes and no layer norm once."""
    kernels: tuple[Literal["forward", "backward"], ...] = ("forward", "backward")
    for kernel in kernels:
        for model in WIDTHS:
            yield report(model, kernel, "bf16", "u8", 16, 196)
        for words, patches in ((32, 196), (64, 196), (16, 256), (16, 1024), (32, 1024)):
            yield report("ViT-S", kernel, "bf16", "u8", words, patches)
        yield report("ViT-S", kernel, "bf16", "u8", 16, 196, layer_norm=False)
        yield report("ViT-S", kernel, "bf16", "fp16", 16, 196)
        yield report("ViT-S", kernel, "bf16", "fp32", 16, 196)
        yield report("ViT-S", kernel, "fp32", "u8", 16, 196)


if __name__ == "__main__":
    for each in reports():
        sys.stdout.write(json.dumps(asdict(each)) + "\n")
        sys.stdout.flush()

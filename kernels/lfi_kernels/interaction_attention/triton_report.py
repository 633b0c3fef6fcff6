"""What the compiler makes of the fused kernels for a GPU that need not be there: registers, shared memory, races.

    python -m lfi_kernels.interaction_attention.triton_report [--all]

prints one JSON object a line: the usual tiles on the shapes that students have; with --all every tile of the lists. It
needs triton, and must not run under its interpreter.

Races: triton (3.6 and 3.8 were seen) gives a tile of a pipelined loop that feeds both wgmma and registers one slot too
few, so that the copy of a later tile overwrites it under a product in flight. On an H100 that made results wrong by 0.2
to 0.36. In the intermediate code it is plain to see: see `races`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lfi_kernels.interaction_attention import triton_fused, triton_project
from lfi_kernels.interaction_attention.tiles import OF_16_BITS, OF_32_BITS, Kernel, Problem, Tile

WIDTHS = {"ViT-T": 192, "ViT-S": 384, "ViT-B": 768, "ViT-L": 1024}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "u8": torch.uint8}
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
POINTERS |= {torch.uint8: "*u8", torch.int32: "*i32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What is compiled for: a batch of four samples, whose size no kernel depends on.

    Attributes:
        model: the vision transformer whose width D is taken.
        dtype: of queries and features.
        target: dtype of the maps, or `none`.
        words: M queries.
        patches: N.
        query_dim: Dq.
        heads: H.
        in_rows: whether few queries have a map, so that maps come as rows.
        masked: whether patches are ignored.
    """

    model: str = "ViT-S"
    dtype: str = "bf16"
    target: str = "u8"
    words: int = 16
    patches: int = 196
    query_dim: int = 128
    heads: int = 4
    in_rows: bool = False
    masked: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One kernel, compiled.

    Attributes:
        kernel: its function.
        shape, tile: what for.
        registers: of a thread.
        stack_bytes: of a thread: what did not fit into registers.
        spills_in_loops: instructions that reach the stack within the innermost loops of products, where they cost most.
        shared_kib: of a program.
        hopper_products: matrix instructions of sm_90 (wgmma).
        older_products: matrix instructions of sm_80 (mma), which are slower there.
        pipelined: tiles that are copied ahead of the wgmma that reads them.
        races: what is wrong with those, see `races`.
    """

    kernel: str
    shape: Shape
    tile: str
    registers: int
    stack_bytes: int
    spills_in_loops: int
    shared_kib: float
    hopper_products: int
    older_products: int
    pipelined: int
    races: list[str]


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel with the arguments that its launcher gives it."""

    function: Any
    arguments: dict[str, Any]
    tile: Tile


def launches(shape: Shape, tiles: Mapping[Kernel, Tile] | None = None) -> list[Launch]:
    """All launches of a forward and a backward pass, on tensors without memory; `tiles` replace the usual ones."""
    recorded: list[Launch] = []
    chosen: list[Tile] = []

    class Recorder:
        def __init__(self, function: Any) -> None:
            self.function = function

        def __getitem__(self, _: object) -> Recorder:
            return self

        def __call__(self, *positional: Any, **named: Any) -> None:
            arguments = dict(zip(self.function.arg_names, positional, strict=False)) | named
            recorded.append(Launch(self.function, arguments, chosen[-1]))

    def launch(problem: Problem, _: torch.device, run: Any) -> Any:
        chosen.append((tiles or {}).get(problem.kernel) or problem.usual())
        return run(chosen[-1])

    with ExitStack() as stack:
        for module in (triton_fused, triton_project):
            stack.enter_context(patch.object(module, "launch", launch))
            for name in [each for each in vars(module) if each.endswith("_kernel")]:
                stack.enter_context(patch.object(module, name, Recorder(getattr(module, name))))
        stack.enter_context(patch.object(triton_project, "processors", lambda _: 132))
        _both_passes(shape)
    return recorded


def _both_passes(shape: Shape) -> None:
    batch, dtype, dim = 4, DTYPES[shape.dtype], WIDTHS[shape.model]

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    q = empty(batch, shape.words, shape.query_dim, dtype=dtype)
    x, w = empty(batch, shape.patches, dim, dtype=dtype), empty(dim, 2 * shape.query_dim)
    rows = (3 * batch,) if shape.in_rows else (batch, shape.words)
    index = empty(*rows, dtype=torch.int64) if shape.in_rows else None
    is_compared = shape.target != "none"
    maps = triton_fused.Maps.of(
        (batch, shape.words),
        empty(*rows, shape.patches, dtype=DTYPES[shape.target]) if is_compared else None,
        empty(*rows) if is_compared else None,
        empty(*rows) if shape.target == "u8" else None,
        empty(batch, shape.patches, dtype=torch.bool) if shape.masked else None,
        index,
        index,
        "sqrt",
    )
    o, kl, *saved = triton_fused.fused_forward(q, x, w, shape.heads, 1e-5, maps)
    lse, t_sum, kv, mean, rstd = saved
    kept = (o, lse, t_sum, kv, mean, rstd)
    triton_fused.fused_backward(q, x, w, shape.heads, maps, kept, o, kl, (True, True))


def compiled(launch: Launch, capability: int = 90) -> Any:
    """Compile the kernel of a launch as a call on a GPU would, with divisibility by 16 of addresses and strides."""
    warps, stages = launch.arguments["num_warps"], launch.arguments["num_stages"]
    return compile_source(source(launch.function, launch.arguments), warps, stages, capability)


def compile_source(code: Any, warps: int, stages: int, capability: int = 90) -> Any:
    """Compile a kernel for a GPU that need not be there."""
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(code, target=GPUTarget("cuda", capability, 32), options=options)


def source(function: Any, arguments: Mapping[str, Any]) -> Any:
    """Return a kernel with the types of its arguments, as `compile_source` takes it."""
    signature: dict[str, str] = {}
    known: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for place, parameter in enumerate(function.params):
        name, value = parameter.name, arguments[parameter.name]
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None:
            signature[name] = "constexpr"
            known[(place,)] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(function, signature, known, attributes)


def races(code: str) -> list[str]:
    """Return what is wrong with the pipelined tiles of wgmma, in the intermediate code of a kernel.

    Two faults: a tile that registers read as well; and one that a wgmma in flight may still read when a copy overwrites
    it. Copies of tile i + ahead are issued in turn i, into slot (i + ahead) mod slots. Where slots <= ahead that is the
    slot of a tile that the wgmma of this turn still reads, unless a wait for all products comes between.
    """
    slots, steps = _pipelines(code)
    faults = []
    for tile in pipelined(code):
        count = slots[tile]
        if any(what == "read" and which == tile for _, what, which in steps):
            faults.append(f"{tile} feeds registers as well")
        for loop in {place for place, what, which in steps if what == "product" and which == tile}:
            ahead = sum(what == "copy" and which == tile and place != loop for place, what, which in steps)
            in_flight = False
            for place, what, which in steps:
                if place != loop:
                    continue
                if what == "product" and which == tile:
                    in_flight = True
                elif what == "wait" and which == "0":
                    in_flight = False
                elif what == "copy" and which == tile and in_flight and count <= ahead:
                    faults.append(f"{tile}: {count} slots, {ahead} copies ahead")
    return faults


def pipelined(code: str) -> list[str]:
    """Return the tiles that are copied ahead of the wgmma that reads them."""
    slots, steps = _pipelines(code)
    seen = {(what, which) for _, what, which in steps}
    return [tile for tile in slots if {("copy", tile), ("product", tile)} <= seen]


def _pipelines(code: str) -> tuple[dict[str, int], list[tuple[int, str, str]]]:
    """Slots of every buffer in shared memory, and what happens: (loop, product | wait | copy | read, buffer)."""
    slots: dict[str, int] = {}
    parts: dict[str, str] = {}
    loops, count = [0], 0
    steps: list[tuple[int, str, str]] = []
    for raw in code.splitlines():
        line = re.sub(r" loc\(#loc\d*\)", "", raw)
        if line.startswith("#loc"):
            continue
        if made := re.search(r"%(\S+) = ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x\d+x\d+x", line):
            slots[made[1]] = int(made[2])
        elif part := re.search(r"%(\S+) = ttg\.memdesc_index %([^\[\s]+)\[", line):
            parts[part[1]] = part[2]
        elif part := re.search(r"%(\S+) = ttg\.memdesc_(?:trans|subslice|reshape) %([^\[\s,]+)", line):
            parts[part[1]] = parts.get(part[2], part[2])
        if re.search(r"\bscf\.(for|if|while)\b", line):
            count += 1
            loops.append(count)
        here = loops[-1]
        if product := re.search(r"= ttng\.warp_group_dot %([^,\s]+), %([^,\s]+),.*isAsync = true", line):
            steps += [(here, "product", parts[each]) for each in product.groups() if parts.get(each) in slots]
        if wait := re.search(r"warp_group_dot_wait .*pendings = (\d+)", line):
            steps.append((here, "wait", wait[1]))
        if copy := re.search(r"async_copy_global_to_local %[^,\s]+, %([^,\s]+)", line):
            steps.append((here, "copy", parts.get(copy[1], copy[1])))
        if read := re.search(r"ttg\.local_load %([^,\s]+)", line):
            steps.append((here, "read", parts.get(read[1], read[1])))
        if re.match(r"\s*\}(?!\))", line) and len(loops) > 1 and "else" not in line:
            loops.pop()
    return slots, steps


def report_of(launch: Launch, shape: Shape) -> Report:
    """Compile one kernel, and read what it takes."""
    made = compiled(launch)
    registers, stack = _usage(made.asm["cubin"])
    return Report(
        kernel=launch.function.__name__,
        shape=shape,
        tile=str(launch.tile),
        registers=registers,
        stack_bytes=stack,
        spills_in_loops=_spills_in_loops(made.asm["cubin"]),
        shared_kib=made.metadata.shared / 1024,
        hopper_products=len(re.findall(r"wgmma\.mma_async", made.asm["ptx"])),
        older_products=len(re.findall(r"\bmma\.sync", made.asm["ptx"])),
        pipelined=len(pipelined(made.asm["ttgir"])),
        races=races(made.asm["ttgir"]),
    )


def _usage(binary: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    usage = _disassembler("cuobjdump", "-res-usage", binary)
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cuobjdump must name REG and STACK, got {usage!r}.")
    return int(match[1]), int(match[2])


def _spills_in_loops(binary: bytes) -> int:
    """Loads and stores of local memory in the innermost loops that hold matrix products."""
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in _disassembler("nvdisasm", "-c", binary).splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(instruction[1])
    jumps = ((re.search(r"\bBRA\b.*`\((\.L_\w+)\)", text), place) for place, text in enumerate(code))
    loops = [(labels[jump[1]], place) for jump, place in jumps if jump and labels.get(jump[1], place) < place]
    inner = [
        (a, b) for a, b in loops if not any((a, b) != other and a <= other[0] and other[1] <= b for other in loops)
    ]
    walks = [code[a : b + 1] for a, b in inner if any("MMA" in text for text in code[a : b + 1])]
    return sum(bool(re.search(r"\b(LDL|STL)", text)) for walk in walks for text in walk)


def _disassembler(name: str, option: str, binary: bytes) -> str:
    """What a tool that comes with triton prints of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        return subprocess.run([str(tool), option, str(file)], capture_output=True, text=True, check=True).stdout


USUAL = (
    *(Shape(model=model) for model in ("ViT-S", "ViT-T", "ViT-B", "ViT-L")),
    *(Shape(words=words, patches=patches) for words, patches in ((32, 196), (16, 1024))),
    *(Shape(words=80, in_rows=in_rows) for in_rows in (False, True)),
    Shape(in_rows=True, masked=True),
    Shape(target="none", words=200),
    Shape(dtype="fp16", target="fp16"),
    Shape(target="fp32"),
    Shape(target="fp16", words=80, in_rows=True),
    Shape(words=3, query_dim=96, heads=3, patches=49),
    Shape(words=80, patches=16),
    Shape(dtype="fp32"),
)
"""The shapes that students have, the other ways of the kernels, and other dtypes; each kernel once."""


def reports(every_tile: bool) -> Iterator[Report]:
    """Report the usual tiles on `USUAL`; or every tile, on a shape of one block of queries and on one of several."""
    if not every_tile:
        done = set()
        for shape in USUAL:
            for launch in launches(shape):
                known = {name: value for name, value in launch.arguments.items() if not isinstance(value, Tensor)}
                types = [each.dtype for each in launch.arguments.values() if isinstance(each, Tensor)]
                kind = f"{launch.function.__name__} {known | {'INVERSE_D': 0}} {types}"
                if kind not in done:
                    done.add(kind)
                    yield report_of(launch, shape)
        return
    for dtype, lists in (("bf16", OF_16_BITS), ("fp32", OF_32_BITS)):
        for kernel, sizes in lists.items():
            for rows, columns, depth, warps, stages in sizes:
                tile = Tile(rows=rows, columns=columns, depth=depth, warps=warps, stages=stages)
                for shape in (Shape(dtype=dtype), Shape(dtype=dtype, words=80, in_rows=True)):
                    if shape.in_rows and kernel not in ("forward", "backward"):
                        continue
                    for launch in launches(shape, {kernel: tile}):
                        if launch.tile == tile and _belongs(launch.function.__name__, kernel):
                            yield report_of(launch, shape)


def _belongs(function: str, kernel: Kernel) -> bool:
    names = {"backward": ("queries_kernel", "keys_kernel")}
    return function in names.get(kernel, (f"{kernel}_kernel",))


if __name__ == "__main__":
    for each in reports("--all" in sys.argv):
        sys.stdout.write(json.dumps(asdict(each)) + "\n")
        sys.stdout.flush()

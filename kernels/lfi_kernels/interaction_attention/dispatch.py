"""Which implementation of the block runs, and whether the fused kernels do on this GPU what the reference does.

The kernels are proven under Triton's interpreter, on shapes small enough for it. What a compiler makes of them for the
GPU that somebody has is seen only there, so they solve a small problem first, and are used where they solve it right.
What was found is remembered on disk by GPU, compiler and the kernels' source, so that only the first process ever
compiles for it.
"""

from __future__ import annotations

import functools
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lfi_kernels.interaction_attention import reference
from lfi_kernels.interaction_attention.tiles import (
    OLDEST_TRITON,
    cache_folder,
    code,
    has_triton,
    triton_version,
    write_json,
)


@torch.library.custom_op("lfi_kernels::projected_attention", mutates_args=())
def projected_attention(
    q: Tensor,
    x: Tensor,
    w: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    row_batch: Tensor | None,
    row_query: Tensor | None,
    heads: int,
    companding: str,
    layer_norm_eps: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Project patches to keys and values, attend to them, and measure the divergence; on checked arguments.

    Args:
        q: [B, M, Dq], queries with the scale of scores in them.
        x: [B, N, D], patches of q's dtype.
        w: [D, 2 Dq], weights of keys, then of values; with layer norm the mean over D taken out of every column.
        target, row_weight, target_scale, key_padding_mask, row_batch, row_query, companding: as in
            `interaction_attention`; kl has a row for each map: [B*M, H], or [R, H]; [0, H] without a target.
        heads: H.
        layer_norm_eps: eps of the layer norm of x; None: x is taken as it is.

    Returns:
        o = concat_h(P_h V_h) [B, M, Dq] and kl [R, H]; for the gradient lse [B, H, M], sum T [R, H], keys and values
        [B, N, 2 Dq], and mean and reciprocal deviation of each patch, [B, N], or [0] without layer norm.
    """
    from lfi_kernels.interaction_attention.triton_fused import Maps, fused_forward

    maps = Maps.of(
        *((q.shape[0], q.shape[1]), target, row_weight, target_scale),
        *(key_padding_mask, row_batch, row_query, companding),
    )
    return fused_forward(q, x, w, heads, layer_norm_eps, maps)


@torch.library.custom_op("lfi_kernels::projected_attention_backward", mutates_args=())
def projected_attention_backward(
    do: Tensor,
    dkl: Tensor,
    o: Tensor,
    lse: Tensor,
    target_sum: Tensor,
    kv: Tensor,
    mean: Tensor,
    rstd: Tensor,
    q: Tensor,
    x: Tensor,
    w: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    row_batch: Tensor | None,
    row_query: Tensor | None,
    heads: int,
    companding: str,
    needs_x: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [B, M, Dq], of x [B, N, D] and of w [D, 2 Dq] in fp32; [0] for one that is not needed.

    That of w is right up to a constant by column, which taking the means out of w's columns removes again.
    """
    from lfi_kernels.interaction_attention.triton_fused import Maps, fused_backward

    maps = Maps.of(
        *((q.shape[0], q.shape[1]), target, row_weight, target_scale),
        *(key_padding_mask, row_batch, row_query, companding),
    )
    saved = o, lse, target_sum, kv, mean, rstd
    return fused_backward(q, x, w, heads, maps, saved, do, dkl, (needs_x, needs_w))


@projected_attention.register_fake
def _(
    q: Tensor,
    x: Tensor,
    w: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    row_batch: Tensor | None,
    row_query: Tensor | None,
    heads: int,
    companding: str,
    layer_norm_eps: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, words, _ = q.shape
    rows = 0 if target is None else batch * words if row_batch is None else target.shape[0]
    kl, target_sum = (q.new_empty(rows, heads, dtype=torch.float32) for _ in range(2))
    lse = q.new_empty(batch, heads, words, dtype=torch.float32)
    patches = x.shape[:2] if layer_norm_eps else (0,)
    mean, rstd = (x.new_empty(patches, dtype=torch.float32) for _ in range(2))
    return q.new_empty(q.shape), kl, lse, target_sum, x.new_empty(*x.shape[:2], w.shape[1]), mean, rstd


@projected_attention_backward.register_fake
def _(
    do: Tensor,
    dkl: Tensor,
    o: Tensor,
    lse: Tensor,
    target_sum: Tensor,
    kv: Tensor,
    mean: Tensor,
    rstd: Tensor,
    q: Tensor,
    x: Tensor,
    w: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    needs_x, needs_w = rest[-2:]
    dw = w.new_empty(w.shape if needs_w else (0,), dtype=torch.float32)
    return q.new_empty(q.shape), x.new_empty(x.shape if needs_x else (0,)), dw


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, heads, companding, _ = inputs
    o, kl, *rest = output
    ctx.set_materialize_grads(False)  # gradients of what is saved alone would be tensors of zeros
    ctx.save_for_backward(o, *rest, *tensors)
    ctx.told = heads, companding
    ctx.kl_shape = kl.shape


def _gradient(ctx: Any, do: Tensor | None, dkl: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    o, w = saved[0], saved[8]
    do = torch.zeros_like(o) if do is None else do
    dkl = o.new_zeros(ctx.kl_shape, dtype=torch.float32) if dkl is None else dkl
    needs_x, needs_w = ctx.needs_input_grad[1:3]
    dq, dx, dw = projected_attention_backward(do, dkl, *saved, *ctx.told, needs_x, needs_w)
    return dq, dx if needs_x else None, dw.to(w.dtype) if needs_w else None, *(None,) * 9


projected_attention.register_autograd(_gradient, setup_context=_save)


Implementation = Literal["reference", "triton"]

ENVIRONMENT_VARIABLE = "LFI_KERNELS"
"""`reference` or `triton` force one implementation; `auto`, the default, is triton on a GPU where it proves right."""

FUSED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# Largest ||result - truth|| / ||truth|| of an output or a gradient.
TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float32: 1e-4}


def resolve(device: torch.device, dtype: torch.dtype) -> Implementation:
    """Choose the implementation for a block that computes in `dtype` on `device`.

    `auto` is triton on a GPU, and the reference on the CPU, for float64, without triton 3.5 or newer, and where the
    kernels do not pass their check on that GPU (`is_right`).

    Raises:
        ValueError: LFI_KERNELS is none of its three values, or it asks for triton where triton cannot run: without
            the package, for float64, or for a tensor on the CPU outside Triton's interpreter (TRITON_INTERPRET=1).
    """
    choice = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if choice == "reference":
        return "reference"
    if choice == "auto":
        can_run = device.type == "cuda" and dtype in FUSED_DTYPES and has_triton()
        return "triton" if can_run and _is_right(device, dtype) else "reference"
    if choice != "triton":
        raise ValueError(f'{ENVIRONMENT_VARIABLE} must be "auto", "reference" or "triton", got {choice!r}.')
    if not has_triton():
        installed = triton_version() or "none"
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}=triton needs triton {'.'.join(map(str, OLDEST_TRITON))} or newer, found "
            f"{installed}. Install it, or choose auto."
        )
    if dtype not in FUSED_DTYPES:
        raise ValueError(
            f"queries must be float16, bfloat16 or float32 under {ENVIRONMENT_VARIABLE}=triton, got {dtype}."
        )
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        raise ValueError(
            f"queries must be on a CUDA device under {ENVIRONMENT_VARIABLE}=triton, got some on {device}. "
            "Choose auto, or set TRITON_INTERPRET=1 before the process starts."
        )
    return "triton"


def _is_right(device: torch.device, dtype: torch.dtype) -> bool:
    return is_right(device, dtype)


# Known when a graph is traced, and no part of it: what torch.compiler.assume_constant_result sets, without the compiler
# that it loads.
_is_right._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def is_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether both passes of the kernels agree with the reference in float64 on a small problem on `device`.

    Checked once for each GPU, triton and version of the kernels: see `checks_file`. Warns, once a process, where they
    cannot run or are wrong.
    """
    key = f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else device}; {code()}; {dtype}"
    apart = remembered(checks_file()).get(key)
    if apart is None:
        try:
            with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
                apart = largest_error(device, dtype)
        except Exception as error:  # whatever the compiler or the driver says: the reference can still run
            # Not remembered: memory may have been short.
            return _refused(device, dtype, f"{type(error).__name__}: {error}".splitlines()[0])
        # Another process may have added its own in the meantime. Where the file cannot be written, the next one checks.
        write_json(checks_file(), remembered(checks_file()) | {key: apart if math.isfinite(apart) else -1.0})
    if 0.0 <= apart <= TOLERANCES[dtype]:
        return True
    return _refused(device, dtype, f"a relative error of {apart:g}, allowed {TOLERANCES[dtype]:g}")


def _refused(device: torch.device, dtype: torch.dtype, fault: str) -> bool:
    warnings.warn(
        f"The fused kernels are not used on {device} for {dtype}, where a check of them found {fault}. The reference "
        f"runs instead, slower and with more memory. {ENVIRONMENT_VARIABLE}=reference silences this.",
        stacklevel=4,
    )
    return False


def checks_file() -> Path:
    """Return the path of checks.json in the cache folder: measured errors by GPU, triton, source and dtype."""
    return cache_folder() / "checks.json"


def remembered(path: Path) -> dict[str, float]:
    """Return the errors in a checks file, by key; empty where it cannot be read, so that the check is made again."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {key: float(value) for key, value in plain.items() if type(value) is float and math.isfinite(value)}
    except (OSError, ValueError, AttributeError):
        return {}


def largest_error(device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest relative error of the kernels' outputs and gradients, against the reference in float64.

    Two problems, since the kernels have two ways: 16 queries (one block) with a map each; and 80 queries (several
    blocks), three of which have a map. 192 channels, 150 patches, some of them ignored.
    """
    g = torch.Generator().manual_seed(0)
    batch, patches, dim, query_dim = 3, 150, 192, 128
    x = torch.randn(batch, patches, dim, generator=g) * (0.5 + torch.rand(batch, patches, 1, generator=g))
    w = torch.randn(dim, 2 * query_dim, generator=g) / math.sqrt(dim)
    ignored = torch.rand(batch, patches, generator=g) < 0.2
    rows = torch.tensor([0, 0, 2]), torch.tensor([3, 70, 41])
    worst = 0.0
    for words, (row_batch, row_query) in ((16, (None, None)), (80, rows)):
        q = torch.randn(batch, words, query_dim, generator=g) / 4
        shape = (batch, words) if row_batch is None else (3,)
        target = torch.randint(0, 256, (*shape, patches), generator=g, dtype=torch.uint8)
        weight, scale = (torch.rand(shape, generator=g) + 0.1 for _ in range(2))
        cpu_constants = (target, weight, scale, ignored, row_batch, row_query)
        constants = [None if each is None else each.to(device) for each in cpu_constants]
        do, dkl = torch.randn(q.shape, generator=g), torch.randn(target.numel() // patches, 4, generator=g)
        leaves = [each.to(device, dtype) for each in (q, x, w - w.mean(0))]
        fused = _pass(projected_attention, leaves, constants, (do, dkl))
        truth = _pass(reference.projected_attention, [each.double() for each in leaves], constants, (do, dkl))
        for results in (fused, truth):
            results[4] = results[4] - results[4].mean(0)  # that of w is right up to a constant by column
        worst = max(worst, *(_distance(a, b) for a, b in zip(fused, truth, strict=True)))
    return worst


def _pass(
    op: Callable[..., tuple[Tensor, ...]],
    leaves: list[Tensor],
    constants: list[Tensor | None],
    upstream: tuple[Tensor, Tensor],
) -> list[Tensor]:
    """Return o, kl and the gradients of q, x and w, by one pass of `op` forward and backward."""
    leaves = [each.clone().requires_grad_() for each in leaves]
    o, kl, *_ = op(*leaves, *constants, 4, "sqrt", 1e-5)
    pairs = zip(upstream, (o, kl), strict=True)
    gradients = torch.autograd.grad((o, kl), leaves, [each.to(out) for each, out in pairs])
    return [o.detach(), kl.detach(), *gradients]


def _distance(result: Tensor, truth: Tensor) -> float:
    distance = float((result.double() - truth).norm() / truth.norm())
    return math.inf if math.isnan(distance) else distance

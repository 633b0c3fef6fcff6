"""The fused kernels as operators of PyTorch: with shapes for tracing, and with a gradient.

`torch.compile` sees one opaque call forward and one backward, without a graph break. Triton is loaded by the first
call that runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
        q: [B, M, Dq], queries with 1/sqrt(d) in them.
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

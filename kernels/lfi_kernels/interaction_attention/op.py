"""The fused kernels as operators of PyTorch: with shapes for tracing, and with a gradient.

`torch.compile` sees one opaque call forward and one backward, without a graph break. Triton is loaded by the first
call that runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("lfi_kernels::interaction_attention", mutates_args=())
def fused_forward(
    u: Tensor,
    x: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    companding: str,
    layer_norm_eps: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z [B, H, M, D] and kl [B, H, M], as in the reference; for the gradient lse and sum T [B, H, M], and mean and
    reciprocal deviation of each patch, [B, N], or [0] without layer norm."""
    from lfi_kernels.interaction_attention.triton_forward import launch_forward

    return launch_forward(u, x, target, row_weight, target_scale, key_padding_mask, companding, layer_norm_eps)


@torch.library.custom_op("lfi_kernels::interaction_attention_backward", mutates_args=())
def fused_backward(
    dz: Tensor,
    dkl: Tensor,
    z: Tensor,
    lse: Tensor,
    target_sum: Tensor,
    mean: Tensor,
    rstd: Tensor,
    u: Tensor,
    x: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    companding: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of u [B, H, M, D] and x [B, N, D]."""
    from lfi_kernels.interaction_attention.triton_backward import launch_backward

    return launch_backward(
        dz,
        dkl,
        z,
        lse,
        target_sum,
        mean,
        rstd,
        u,
        x,
        target,
        row_weight,
        target_scale,
        key_padding_mask,
        companding,
    )


@fused_forward.register_fake
def _(
    u: Tensor,
    x: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    companding: str,
    layer_norm_eps: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = u.shape[:3]
    patches = x.shape[:2] if layer_norm_eps else (0,)
    kl, lse, target_sum = (u.new_empty(rows, dtype=torch.float32) for _ in range(3))
    mean, rstd = (u.new_empty(patches, dtype=torch.float32) for _ in range(2))
    return u.new_empty(u.shape), kl, lse, target_sum, mean, rstd


@fused_backward.register_fake
def _(
    dz: Tensor,
    dkl: Tensor,
    z: Tensor,
    lse: Tensor,
    target_sum: Tensor,
    mean: Tensor,
    rstd: Tensor,
    u: Tensor,
    x: Tensor,
    *_: object,
) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, companding, _ = inputs
    z, _, *rest = output
    ctx.save_for_backward(z, *rest, *tensors)
    ctx.companding = companding


def _gradient(ctx: Any, dz: Tensor, dkl: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    du, dx = fused_backward(dz.to(saved[0].dtype), dkl, *saved, ctx.companding)
    return du, dx, None, None, None, None, None, None


fused_forward.register_autograd(_gradient, setup_context=_save)

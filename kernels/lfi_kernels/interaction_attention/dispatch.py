"""Which implementation of `interaction_attention` runs."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor

from lfi_kernels.interaction_attention import reference
from lfi_kernels.interaction_attention.compiler import OLDEST_TRITON, has_triton, triton_version
from lfi_kernels.interaction_attention.inputs import Companding, check_inputs
from lfi_kernels.interaction_attention.op import fused_forward
from lfi_kernels.interaction_attention.self_check import is_right

Implementation = Literal["reference", "triton"]

ENVIRONMENT_VARIABLE = "LFI_KERNELS"
"""`reference` or `triton` force one implementation; `auto`, the default, is triton on a GPU where it proves right."""

FUSED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def interaction_attention(
    u: Tensor,
    x: Tensor,
    target: Tensor | None = None,
    row_weight: Tensor | None = None,
    *,
    target_scale: Tensor | None = None,
    companding: Companding = "sqrt",
    key_padding_mask: Tensor | None = None,
    layer_norm_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    if resolve(u) == "reference":
        return reference.interaction_attention(
            u,
            x,
            target,
            row_weight,
            target_scale=target_scale,
            companding=companding,
            key_padding_mask=key_padding_mask,
            layer_norm_eps=layer_norm_eps,
        )
    check_inputs(u, x, target, row_weight, target_scale, companding, key_padding_mask, layer_norm_eps)
    z, kl, *_ = fused_forward(u, x, target, row_weight, target_scale, key_padding_mask, companding, layer_norm_eps)
    return z, kl


interaction_attention.__doc__ = reference.interaction_attention.__doc__


def resolve(u: Tensor) -> Implementation:
    """Choose the implementation for inputs like `u`.

    `auto` is triton on a GPU, and the reference on the CPU, for float64, without triton 3.5 or newer, and where the
    kernels do not pass their check on that GPU (`self_check`).

    Raises:
        ValueError: LFI_KERNELS is none of its three values, or it asks for triton where triton cannot run: without
            the package, for float64, or for a tensor on the CPU outside Triton's interpreter (TRITON_INTERPRET=1).
    """
    asked = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if asked == "reference":
        return "reference"
    if asked == "auto":
        can_run = u.is_cuda and u.dtype in FUSED_DTYPES and has_triton()
        return "triton" if can_run and _is_right(u.device, u.dtype) else "reference"
    if asked != "triton":
        raise ValueError(f'{ENVIRONMENT_VARIABLE} must be "auto", "reference" or "triton", got {asked!r}.')
    if not has_triton():
        found = triton_version() or "none"
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}=triton needs triton {'.'.join(map(str, OLDEST_TRITON))} or newer, found {found}. "
            "Install it, or choose auto."
        )
    if u.dtype not in FUSED_DTYPES:
        raise ValueError(f"u must be float16, bfloat16 or float32 under {ENVIRONMENT_VARIABLE}=triton, got {u.dtype}.")
    if not u.is_cuda and not _is_interpreted():
        raise ValueError(
            f"u must be on a CUDA device under {ENVIRONMENT_VARIABLE}=triton, got one on {u.device}. "
            "Choose auto, or set TRITON_INTERPRET=1 before the process starts."
        )
    return "triton"


def _is_right(device: torch.device, dtype: torch.dtype) -> bool:
    return is_right(device, dtype)


# Known when a graph is traced, and no part of it: what torch.compiler.assume_constant_result sets, without the compiler
# that it loads.
_is_right._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"

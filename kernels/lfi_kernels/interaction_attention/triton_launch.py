"""What both launchers need to hand tensors to a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from lfi_kernels.interaction_attention.blocks import Problem


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current one: Triton launches there."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def allocator(like: Tensor) -> Callable[..., Tensor]:
    """torch.empty on the tensor's device, of fp32 unless told otherwise: empty(2, 3, dtype=...)."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=like.device)

    return empty


def processors(tensor: Tensor) -> int:
    """How many programs the tensor's device runs side by side, at least; 1 under the interpreter."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def problem_of(
    kernel: Literal["forward", "backward"], u: Tensor, x: Tensor, target: Tensor | None, layer_norm: bool
) -> Problem:
    """What decides about the tiles of a launch with u [B, H, M, D], x [B, N, D] and a target."""
    return Problem(
        kernel=kernel,
        dtype=str(u.dtype).removeprefix("torch."),
        target="none" if target is None else str(target.dtype).removeprefix("torch."),
        rows=u.shape[1] * u.shape[2],
        patches=x.shape[1],
        dim=u.shape[3],
        layer_norm=layer_norm,
        fills=u.shape[0] >= processors(u),
    )


def pointer(mask: Tensor | None) -> Tensor | None:
    """A bool tensor as bytes."""
    return None if mask is None else mask.view(torch.uint8)


def within_reach(tensor: Tensor) -> Tensor:
    """The tensor [B, ...], or a copy of it where an offset within one sample would not fit in 32 bits."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))
    return tensor if reach < 2**31 else tensor.contiguous()


def strides(tensor: Tensor | None, dims: int) -> tuple[int, ...]:
    """Strides in elements; zeros where there is no tensor."""
    return (0,) * dims if tensor is None else tensor.stride()


def precision(tensor: Tensor) -> str:
    """How products of fp32 are taken: as three of tf32, which keep fp32's digits. Has no meaning for 16 bits."""
    return "tf32x3" if tensor.dtype == torch.float32 else "ieee"


def alignment(target: Tensor | None) -> int:
    """The power of two, 16 at most, that divides a target's rows: their length, strides and address, in elements.

    Triton by itself tells only multiples of 16 from others; rows of 196 patches begin and end at multiples of 4.
    """
    if target is None:
        return 1
    found = math.gcd(16, target.shape[2], *target.stride()[:2])
    while target.data_ptr() % (found * target.element_size()):
        found //= 2
    return found

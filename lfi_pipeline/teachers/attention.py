"""Multi-head attention written out, so that its scores and probabilities lie on the path of its output.

PyTorch's fused kernels give neither. The arithmetic of the probabilities is fp32 whatever the layer computes in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUERY, KEY, VALUE = range(3)


@dataclass(frozen=True, slots=True)
class Attended:
    """One pass of one layer: softmax(`scores`) = `probabilities` [B, H, T, S], times values = `mixed` [B, H, T, C/H].

    `query` [B, H, T, C/H] is scaled: scores are `query @ key^T` (plus a mask).
    """

    query: Tensor
    scores: Tensor
    probabilities: Tensor
    mixed: Tensor


def projection(layer: nn.MultiheadAttention, part: int) -> tuple[Tensor, Tensor | None]:
    """Return weight [C, D] and bias [C] of `QUERY`, `KEY` or `VALUE`."""
    if layer.in_proj_weight is not None:
        weight: Tensor = layer.in_proj_weight.chunk(3)[part]
    else:
        weight = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)[part]
    return weight, layer.in_proj_bias.chunk(3)[part] if layer.in_proj_bias is not None else None


def split_heads(x_BTC: Tensor, heads: int) -> Tensor:
    """[B, T, C] -> [B, H, T, C/H]."""
    return x_BTC.view(*x_BTC.shape[:-1], heads, -1).transpose(1, 2)


def project(layer: nn.MultiheadAttention, x_BTD: Tensor, part: int) -> Tensor:
    """Project tokens to heads [B, H, T, C/H]."""
    return split_heads(F.linear(x_BTD, *projection(layer, part)), layer.num_heads)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Attended:
    """Attention of projected heads; `mask` [T, S] is added to the scores."""
    query = query.float() * query.shape[-1] ** -0.5
    scores = query @ key.float().transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    if torch.is_grad_enabled():
        scores.requires_grad_()  # a place to differentiate at, even where nothing before it is differentiated
    probabilities = torch.softmax(scores, dim=-1)
    return Attended(query, scores, probabilities, probabilities.to(value.dtype) @ value)


def merge(layer: nn.MultiheadAttention, mixed: Tensor) -> Tensor:
    """Join heads [B, H, T, C/H] and project out [B, T, C]."""
    return F.linear(mixed.transpose(1, 2).flatten(2), layer.out_proj.weight, layer.out_proj.bias)

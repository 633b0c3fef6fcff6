"""The same block computed in several ways, on the same parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_kernels.interaction_attention.inputs import decode_target
from lfi_kernels.interaction_query import InteractionQueryBlock

Outputs = tuple[Tensor, Tensor]
Way = Callable[[InteractionQueryBlock, "Inputs"], Outputs]


@dataclass(frozen=True, slots=True)
class Inputs:
    """queries [B, M, Dq], features [B, N, D], target [B, M, N] uint8 with scale [B, M], weight [B, M]."""

    queries: Tensor
    features: Tensor
    target: Tensor
    scale: Tensor
    weight: Tensor


def folded(block: InteractionQueryBlock, given: Inputs) -> Outputs:
    """The block itself."""
    out: Outputs = block(given.queries, given.features, given.target, given.weight, given.scale)
    return out


def projected(block: InteractionQueryBlock, given: Inputs) -> Outputs:
    """Keys, values and one map a head, as attention is usually written."""
    q, k, v, maps = _projections(block, given)
    scores = q @ k.mT
    kl = F.kl_div(scores.float().log_softmax(-1), maps[:, None].expand(scores.shape), reduction="none").sum(-1)
    values = scores.softmax(-1) @ v
    return given.queries + values.transpose(1, 2).flatten(2) @ block.w_o, kl * given.weight[:, None]


def sdpa(block: InteractionQueryBlock, given: Inputs) -> Outputs:
    """Values by scaled_dot_product_attention, and a map apart for the loss."""
    q, k, v, maps = _projections(block, given)
    values = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    scores = (q @ k.mT).float()
    kl = F.kl_div(scores.log_softmax(-1), maps[:, None].expand(scores.shape), reduction="none").sum(-1)
    return given.queries + values.transpose(1, 2).flatten(2) @ block.w_o, kl * given.weight[:, None]


WAYS: dict[str, Way] = {"folded": folded, "projected": projected, "sdpa": sdpa}


def _projections(block: InteractionQueryBlock, given: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q [B, H, M, d], k and v [B, H, N, d], and the decoded maps [B, M, N] in fp32."""

    def split(rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], block.heads, -1).transpose(1, 2)

    x = F.layer_norm(given.features, (block.feature_dim,))
    q = F.layer_norm(given.queries, (block.query_dim,)) @ block.w_q * (block.query_dim // block.heads) ** -0.5
    return (
        split(q),
        split(x @ block.w_k),
        split(x @ block.w_v),
        decode_target(given.target, given.scale, "sqrt", torch.float32),
    )

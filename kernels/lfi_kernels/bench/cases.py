"""The same block computed in several ways, on the same parameters and inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_kernels.interaction_attention.inputs import decode_target
from lfi_kernels.interaction_query import InteractionQueryBlock

WIDTHS = {"ViT-T/16": 192, "ViT-S/16": 384, "ViT-B/16": 768, "ViT-L/16": 1024}
Outputs = tuple[Tensor, Tensor]
Case = Callable[[InteractionQueryBlock, "Inputs"], Outputs]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of one comparison; D is that of `model`."""

    model: str = "ViT-S/16"
    batch: int = 8
    words: int = 16
    patches: int = 196
    heads: int = 4
    query_dim: int = 128

    def __str__(self) -> str:
        return f"{self.model} B{self.batch} M{self.words} N{self.patches} H{self.heads} Dq{self.query_dim}"


@dataclass(frozen=True, slots=True)
class Inputs:
    """queries [B, M, Dq], features [B, N, D], target [B, M, N] uint8 with scale [B, M], weight [B, M]."""

    queries: Tensor
    features: Tensor
    target: Tensor
    scale: Tensor
    weight: Tensor


def folded(block: InteractionQueryBlock, given: Inputs) -> Outputs:
    out: Outputs = block(given.queries, given.features, given.target, given.weight, given.scale)
    return out


def projected(block: InteractionQueryBlock, given: Inputs) -> Outputs:
    q, k, v, maps = _projections(block, given)
    scores = q @ k.mT
    kl = F.kl_div(scores.float().log_softmax(-1), maps[:, None].expand(scores.shape), reduction="none").sum(-1)
    values = scores.softmax(-1) @ v
    return given.queries + values.transpose(1, 2).flatten(2) @ block.w_o, kl * given.weight[:, None]


def sdpa(block: InteractionQueryBlock, given: Inputs) -> Outputs:
    q, k, v, maps = _projections(block, given)
    values = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    scores = (q @ k.mT).float()
    kl = F.kl_div(scores.log_softmax(-1), maps[:, None].expand(scores.shape), reduction="none").sum(-1)
    return given.queries + values.transpose(1, 2).flatten(2) @ block.w_o, kl * given.weight[:, None]


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


def make(shape: Shape, device: str, dtype: torch.dtype) -> tuple[InteractionQueryBlock, Inputs]:
    """A block whose every path carries something, and random inputs."""
    g = torch.Generator().manual_seed(0)
    block = InteractionQueryBlock(shape.query_dim, WIDTHS[shape.model], shape.heads)
    with torch.no_grad():
        for weight in block.parameters():
            weight.copy_(torch.randn(weight.shape, generator=g) / math.sqrt(weight.shape[0]))
    maps = (2 * torch.randn(shape.batch, shape.words, shape.patches, generator=g)).softmax(-1)
    scale = maps.amax(-1).half()
    given = Inputs(
        torch.randn(shape.batch, shape.words, shape.query_dim, generator=g).to(device, dtype).requires_grad_(),
        torch.randn(shape.batch, shape.patches, WIDTHS[shape.model], generator=g).to(device, dtype).requires_grad_(),
        (maps / scale.float()[..., None]).clamp(max=1).sqrt().mul(255).round().to(device, torch.uint8),
        scale.to(device),
        (1 - torch.rand(shape.batch, shape.words, generator=g)).to(device),
    )
    return block.to(device, dtype), given


def step(case: Case, block: InteractionQueryBlock, given: Inputs) -> list[Tensor]:
    """Both outputs, and the gradients of queries, features and parameters for gradients of 1."""
    out, kl = case(block, given)
    leaves = [given.queries, given.features, *block.parameters()]
    gradients = torch.autograd.grad((out, kl), leaves, (torch.ones_like(out), torch.ones_like(kl)))
    return [out.detach(), kl.detach(), *gradients]


PLAIN: dict[str, Case] = {"folded": folded, "projected": projected, "sdpa": sdpa}


def shapes(device: str, quick: bool = False) -> list[Shape]:
    """What is compared, with the 128 channels that a query has by default and with as many as a patch has.

    On a GPU every model, with batches that fill it; on the CPU the two small ones.
    """
    if quick:
        return [Shape(model="ViT-T/16", batch=2, words=3, patches=16)]
    if device.startswith("cuda"):
        sizes = [(n, m, q) for n in (196, 256, 1024) for m in (16, 32) for q in (128, None)]
        models = list(WIDTHS)
    else:
        sizes = [(196, m, q) for m in (8, 16) for q in (128, None)]
        models = ["ViT-T/16", "ViT-S/16"]
    return [
        Shape(
            model=model,
            batch=65536 // n if device.startswith("cuda") else 8,
            words=m,
            patches=n,
            query_dim=q or WIDTHS[model],
        )
        for model in models
        for n, m, q in sizes
    ]

"""Make the probabilities of `nn.MultiheadAttention` visible and differentiable, without forking the model.

open_clip calls its attention layers with `need_weights=False`, and even the weights that PyTorch returns on request lie
beside the path of the output, so their gradient is None. While a probe is open, the output of each probed layer is
recomputed from the layer's own projections through an explicit softmax; the probabilities then lie on the path and
autograd sees them. Arithmetic of the probabilities is fp32 whatever the layer computes in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


class _Times(torch.autograd.Function):
    """`x @ fixed` where `fixed` is a constant.

    Many words' gradients [m, B, H, T, S] meet one `fixed` [B, H, S, C] in the backward pass: they are folded into its
    rows, where PyTorch would copy `fixed` for each word.
    """

    @staticmethod
    def forward(x: Tensor, fixed: Tensor) -> Tensor:
        return x @ fixed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (fixed,) = ctx.saved_tensors
        return _Times.apply(gradient, fixed.transpose(-2, -1)), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], x: Tensor, fixed: Tensor) -> tuple[Tensor, int]:
        assert in_dims[0] is not None
        assert in_dims[1] is None
        x = x.movedim(in_dims[0], -3)  # [B, H, m, T, S]
        return (x.flatten(-3, -2) @ fixed).view(*x.shape[:-1], fixed.shape[-1]), x.ndim - 3


def attend_fixed(query: Tensor, key: Tensor, value: Tensor) -> Attended:
    """As `attend`, where keys and values are constants."""
    query = query.float() * query.shape[-1] ** -0.5
    scores = _Times.apply(query, key.transpose(-2, -1))
    if torch.is_grad_enabled():
        scores.requires_grad_()
    probabilities = torch.softmax(scores, dim=-1)
    return Attended(query, scores, probabilities, _Times.apply(probabilities, value))


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


def batched_gradients(output: Tensor, inputs: Sequence[Tensor], cotangents: Tensor) -> tuple[Tensor, ...]:
    """Gradients [m, ...] in `inputs` for m cotangents [m, ...] of `output` in one pass; the graph is kept.

    Not `is_grads_batched`: that goes word by word through norms, GELU and softmax, and copies what it stacks.
    """
    gradients: tuple[Tensor, ...] = torch.vmap(
        lambda each: torch.autograd.grad(output, inputs, each, retain_graph=True)
    )(cotangents)
    return gradients


@contextmanager
def probe_attention(layers: Mapping[str, nn.MultiheadAttention]) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that fills with the probabilities [B, H, T, S] of each named layer as the model runs."""
    seen: dict[str, Tensor] = {}

    def hook_for(name: str) -> Any:
        def hook(
            layer: nn.MultiheadAttention, args: Sequence[Tensor], kwargs: Mapping[str, Any], output: Any
        ) -> tuple[Tensor, None]:
            if kwargs.get("attn_mask") is not None or kwargs.get("key_padding_mask") is not None:
                raise NotImplementedError(f"{name}: only unmasked attention is probed")
            query, key, value = args
            shared = query[:1] if query.stride(0) == 0 else query  # expanded, as a pooler's are: projected once
            heads = project(layer, shared, QUERY), project(layer, key, KEY), project(layer, value, VALUE)
            attended = attend(*heads)
            seen[name] = attended.probabilities
            return merge(layer, attended.mixed), None

        return hook

    handles = [layer.register_forward_hook(hook_for(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def outputs_of(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield a list that fills with the outputs of `layers`, call by call, as the model runs."""
    outputs: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda _layer, _args, output: outputs.append(output)) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()

"""Make the probabilities of `nn.MultiheadAttention` visible and differentiable, without forking the model.

open_clip calls its attention layers with `need_weights=False`, and even the weights that PyTorch returns on request lie
beside the path of the output, so their gradient is None. While a probe is open, the output of each probed layer is
recomputed from the layer's own projections through an explicit softmax; the probabilities then lie on the path and
autograd sees them. Arithmetic of the probabilities is fp32 whatever the layer computes in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
            seen[name] = _probabilities(layer, query, key)
            return _mix(layer, seen[name], value), None

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


def _projections(layer: nn.MultiheadAttention) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Return the query, key and value projections' weights and biases."""
    if layer.in_proj_weight is not None:
        weights: tuple[Tensor, ...] = layer.in_proj_weight.chunk(3)
    else:
        weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    biases = layer.in_proj_bias.chunk(3) if layer.in_proj_bias is not None else (None,) * 3
    return weights, biases


def _split_heads(x_BTC: Tensor, heads: int) -> Tensor:
    batch, length, width = x_BTC.shape
    return x_BTC.view(batch, length, heads, width // heads).transpose(1, 2)  # [B, H, T, C/H]


def _probabilities(layer: nn.MultiheadAttention, query: Tensor, key: Tensor) -> Tensor:
    weights, biases = _projections(layer)
    q = _split_heads(F.linear(query, weights[0], biases[0]), layer.num_heads).float()
    k = _split_heads(F.linear(key, weights[1], biases[1]), layer.num_heads).float()
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)


def _mix(layer: nn.MultiheadAttention, probabilities: Tensor, value: Tensor) -> Tensor:
    weights, biases = _projections(layer)
    v = _split_heads(F.linear(value, weights[2], biases[2]), layer.num_heads)
    mixed = (probabilities.to(v.dtype) @ v).transpose(1, 2).flatten(2)
    return F.linear(mixed, layer.out_proj.weight, layer.out_proj.bias)

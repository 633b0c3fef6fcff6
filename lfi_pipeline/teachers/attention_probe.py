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

from torch import Tensor, nn

from lfi_pipeline.teachers.attention import KEY, QUERY, VALUE, attend, merge, project


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

"""Make the probabilities of `nn.MultiheadAttention` visible and differentiable, without forking the model.

open_clip calls its attention layers with `need_weights=False`, and even the weights that PyTorch returns on request lie
beside the path of the output, so their gradient is None. While a probe is open, the output of each probed layer is
recomputed from the layer's own projections through an explicit softmax; the probabilities then lie on the path and
autograd sees them. Arithmetic of the probabilities is fp32 whatever the layer computes in. `CompiledBlocks` runs a
trunk as torch compiles it wherever nobody looks inside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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


SMALL = 100_000_000  # parameters of a trunk: with fewer a GPU waits for its kernels to be launched, and CUDA graphs pay


def compiled_function(function: Callable[..., Tensor], *, graphs: bool, **options: Any) -> Callable[..., Tensor]:
    """Return `function` as torch compiles it for inputs of fixed shapes.

    Args:
        function: of tensors, to a tensor.
        graphs, options: replay it as CUDA graphs, whose results are copied out so that they last; of `torch.compile`.
    """
    options = {"mode": "reduce-overhead"} | options if graphs else options
    compiled: Callable[..., Tensor] = torch.compile(function, dynamic=False, **options)
    return (lambda *inputs, **named: compiled(*inputs, **named).clone()) if graphs else compiled


def graphs_pay(modules: Sequence[nn.Module]) -> bool:
    """Whether to replay modules as CUDA graphs: small ones, on a GPU. In other threads than the main one torch cannot."""
    weights = [weight for module in modules for weight in module.parameters()]
    able = any(w.device.type == "cuda" for w in weights) and threading.current_thread() is threading.main_thread()
    return able and sum(weight.numel() for weight in weights) < SMALL


class CompiledBlocks:
    """The blocks of a trunk, run as torch compiles them while this is entered; weights keep their names.

    They run in pieces that end where somebody looks: a hook on a block is called with its output as ever. A block whose
    own parts have hooks runs as it is, and so does all behind a place to differentiate at: a compiled piece has no
    gradients for many words at a time. So do batches of another size, for which nothing is compiled anew.

    Args:
        blocks: of the trunk, each called once in a pass, in order, with tokens [B, T, D].
        batch_size: B for which they are compiled.
        graphs, options: as of `compiled_function`.
    """

    def __init__(self, blocks: Sequence[nn.Module], batch_size: int, *, graphs: bool, **options: Any) -> None:
        self._blocks, self._batch_size, self._graphs = list(blocks), batch_size, graphs
        self._parts = [[part for part in block.modules() if part is not block] for block in blocks]
        self._compiled = compiled_function(_through, graphs=graphs, **options)
        self._ends: list[int] = []

    def __enter__(self) -> CompiledBlocks:
        for number, block in enumerate(self._blocks):
            setattr(block, "forward", partial(self._forward, number))  # noqa: B010 - in place, for one object
        return self

    def __exit__(self, *_: object) -> None:
        for block in self._blocks:
            del block.forward

    def _forward(self, number: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stands in for a block's: runs the piece that begins here, or hands on what came out of the piece it is in."""
        if number == 0:
            self._ends = self._pieces(len(x))
            if self._graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        end = self._ends[number]
        if end < number:
            return x
        blocks = self._blocks[number : max(end, number + 1)]
        differentiated = torch.is_grad_enabled() and x.requires_grad
        return (_through if end == number or differentiated else self._compiled)(blocks, x, *args, **kwargs)

    def _pieces(self, batch: int) -> list[int]:
        """For each block the end of the piece that it begins; its own number where it runs as it is, -1 within a piece."""
        total, ends, first = len(self._blocks), [-1] * len(self._blocks), 0
        while first < total:
            end = first
            if batch == self._batch_size and not self._looked_into(first):
                end += 1
                while end < total and not (self._seen_between(end) or self._looked_into(end)):
                    end += 1
            ends[first] = end
            first = max(end, first + 1)
        return ends

    def _looked_into(self, number: int) -> bool:
        return any(part._forward_hooks or part._forward_pre_hooks for part in self._parts[number])

    def _seen_between(self, number: int) -> bool:
        return bool(self._blocks[number - 1]._forward_hooks or self._blocks[number]._forward_pre_hooks)


def _through(blocks: Sequence[nn.Module], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    for block in blocks:
        x = type(block).forward(block, x, *args, **kwargs)
    return x

"""The block computed in several ways on the same parameters and inputs, each bound to a shape as a work to be timed.

`folded` is InteractionQueryBlock on the reference, which folds few queries; `fused` is it on the kernels, `fused-nchw`
with features as a student's taps lay them out, which are copied before either pass; `projected`
builds K and V and one map a head; `sdpa` leaves the values to scaled_dot_product_attention and builds the map apart,
for the loss; `flex` leaves them to FlexAttention and takes the divergence from its log-sum-exp: sum T S = q . (K^T T),
so that no map is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_kernels.bench.shapes import DTYPES, Shape, known
from lfi_kernels.bench.timing import Work
from lfi_kernels.interaction_attention.inputs import decode_target
from lfi_kernels.interaction_query import LAYER_NORM_EPS, InteractionQueryBlock

ON_CPU = ("folded", "projected", "sdpa")
FUSED = "triton"
"""The value of LFI_KERNELS for the fused case."""

OURS = ("fused", "fused-nchw")
"""The cases of the fused kernels."""

ON_GPU = (*OURS, *ON_CPU, "compiled-folded", "compiled-projected", "compiled-flex")

Outputs = tuple[Tensor, Tensor]
Way = Callable[[InteractionQueryBlock, "Inputs"], Outputs]


@dataclass(frozen=True, slots=True)
class Inputs:
    """queries [B, M, Dq], features [B, N, D], and maps with scale and weight: [B, M, N] uint8, or [R, N] with the
    sample and query of each row; None: no maps."""

    queries: Tensor
    features: Tensor
    target: Tensor | None
    scale: Tensor | None
    weight: Tensor | None
    row_batch: Tensor | None = None
    row_query: Tensor | None = None

    def constants(self) -> tuple[Tensor, ...]:
        """Return the tensors without a gradient: maps, scales, weights and row numbers, where there are any."""
        tensors = self.target, self.scale, self.weight, self.row_batch, self.row_query
        return tuple(each for each in tensors if each is not None)

    def of(self, picked: Tensor) -> Inputs:
        """Return the inputs of the samples `picked` [S], numbers that increase; queries and features in float64."""
        queries, features = (each.detach()[picked].double().requires_grad_() for each in (self.queries, self.features))
        rest = self.target, self.scale, self.weight
        if self.row_batch is None or self.row_query is None:
            of_samples = [None if each is None else each[picked] for each in rest]
            return Inputs(queries, features, of_samples[0], of_samples[1], of_samples[2])
        places = (self.row_batch[:, None] == picked).nonzero()
        rows = places[:, 0]
        of_rows = [None if each is None else each[rows] for each in rest]
        index = places[:, 1], self.row_query[rows]
        return Inputs(queries, features, of_rows[0], of_rows[1], of_rows[2], *index)


def folded(block: InteractionQueryBlock, inputs: Inputs) -> Outputs:
    """The block itself."""
    rows = {"row_batch": inputs.row_batch, "row_query": inputs.row_query}
    out: Outputs = block(inputs.queries, inputs.features, inputs.target, inputs.weight, inputs.scale, **rows)
    return out


def projected(block: InteractionQueryBlock, inputs: Inputs) -> Outputs:
    """Keys, values and one map a head, as attention is usually written."""
    q, k, v = _projections(block, inputs)
    scores = q @ k.mT
    return _state(block, inputs, scores.softmax(-1) @ v), _divergence(inputs, scores)


def sdpa(block: InteractionQueryBlock, inputs: Inputs) -> Outputs:
    """Values by scaled_dot_product_attention, and a map apart for the loss."""
    q, k, v = _projections(block, inputs)
    values = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    if inputs.row_batch is not None:
        scores = (q[inputs.row_batch, :, inputs.row_query][:, :, None] @ k[inputs.row_batch].mT)[:, :, 0]
        return _state(block, inputs, values), _compared(inputs, scores)
    return _state(block, inputs, values), _divergence(inputs, q @ k.mT if inputs.target is not None else q)


def flex(block: InteractionQueryBlock, inputs: Inputs) -> Outputs:
    """Values by FlexAttention, and the divergence from its log-sum-exp, without a map."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = _projections(block, inputs)
    values, lse = flex_attention(q, k, v, scale=1.0, return_lse=True)
    state = _state(block, inputs, values)
    if inputs.target is None:
        return state, lse.new_zeros(lse.shape)
    maps = _maps(inputs)
    entropy, total = torch.xlogy(maps, maps).sum(-1), maps.sum(-1)
    assert inputs.weight is not None
    if inputs.row_batch is not None:
        # [R, N] @ [R, H, N, d] -> [R, H, d]
        means = (maps.to(k.dtype)[:, None, None] @ k[inputs.row_batch])[:, :, 0]
        q_rows, lse = q[inputs.row_batch, :, inputs.row_query], lse[inputs.row_batch, :, inputs.row_query]
        scores = (q_rows.float() * means.float()).sum(-1)
        return state, inputs.weight[:, None] * (entropy[:, None] - scores + total[:, None] * lse)
    scores = (q.float() * (maps.to(k.dtype)[:, None] @ k).float()).sum(-1)
    return state, inputs.weight[:, None] * (entropy[:, None] - scores + total[:, None] * lse)


WAYS: dict[str, Way] = {"folded": folded, "projected": projected, "sdpa": sdpa, "flex": flex}


def _projections(block: InteractionQueryBlock, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, M, d], k and v [B, H, N, d]."""

    def split(rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], block.heads, -1).transpose(1, 2)

    x = F.layer_norm(inputs.features, (block.feature_dim,), eps=LAYER_NORM_EPS)
    q = F.layer_norm(inputs.queries, (block.query_dim,), eps=LAYER_NORM_EPS) @ block.w_q
    return split(q * (block.query_dim // block.heads) ** -0.5), split(x @ block.w_k), split(x @ block.w_v)


def _state(block: InteractionQueryBlock, inputs: Inputs, values: Tensor) -> Tensor:
    return inputs.queries + values.transpose(1, 2).flatten(2) @ block.w_o


def _maps(inputs: Inputs) -> Tensor:
    assert inputs.target is not None
    return decode_target(inputs.target, inputs.scale, "sqrt", torch.float32)


def _divergence(inputs: Inputs, scores: Tensor) -> Tensor:
    """Return kl [B, H, M], or [R, H] for rows, of scores [B, H, M, N]; zeros without maps."""
    if inputs.target is None:
        return scores.new_zeros(scores.shape[:3], dtype=torch.float32)
    if inputs.row_batch is not None:
        return _compared(inputs, scores[inputs.row_batch, :, inputs.row_query])
    return _compared(inputs, scores)


def _compared(inputs: Inputs, scores: Tensor) -> Tensor:
    """Return kl [B, H, M] or [R, H] of scores [B, H, M, N] or [R, H, N], which have a map each."""
    assert inputs.weight is not None
    maps = _maps(inputs)[:, None].expand(scores.shape)
    return F.kl_div(scores.float().log_softmax(-1), maps, reduction="none").sum(-1) * inputs.weight[:, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A work to be timed; `exact` makes the same of some samples, by their numbers, on the reference in float64."""

    work: Work
    exact: Callable[[Tensor], Work]


def case_names(device: str, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the cases to run, in the order in which they are shown; all of the device's where none is named.

    Raises:
        ValueError: the device has no such case.
    """
    choices = ON_GPU if device.startswith("cuda") else ON_CPU
    known("case", names, choices, f" on {device}")
    return tuple(each for each in choices if each in names or not names)


def make_cases(shape: Shape, device: str, names: Sequence[str]) -> dict[str, Case]:
    """Bind the named cases to the same parameters and inputs."""
    block, inputs = make(shape, device)
    cases = {}
    for name in names:
        kind = name.removeprefix("compiled-")
        way = folded if kind in OURS else WAYS[kind]
        if kind != name:
            way = torch.compile(way, dynamic=False)
        choice = FUSED if name in OURS else "reference"
        bound = _as_taps(inputs) if name == "fused-nchw" else inputs
        cases[name] = Case(work=_work(way, block, bound, choice), exact=_exact(block, bound))
    return cases


def _as_taps(inputs: Inputs) -> Inputs:
    """The same numbers, a channel's patches beside each other: strides (D N, 1, N), of maps [B, D, h, w] in rows."""
    features = inputs.features.detach().mT.contiguous().mT
    return replace(inputs, features=features.requires_grad_())


def make(shape: Shape, device: str) -> tuple[InteractionQueryBlock, Inputs]:
    """Return a block with random weights, W_o too, and random inputs; drawn on the device, for they are large."""
    g = torch.Generator(device).manual_seed(0)
    dtype = DTYPES[shape.dtype]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, device=device)

    block = InteractionQueryBlock(shape.query_dim, shape.dim, shape.heads).to(device)
    with torch.no_grad():
        for weight in block.parameters():
            weight.copy_(normal(*weight.shape) / math.sqrt(weight.shape[0]))
    queries = normal(shape.batch, shape.words, shape.query_dim).to(dtype).requires_grad_()
    features = normal(shape.batch, shape.patches, shape.dim).to(dtype).requires_grad_()
    if shape.maps == 0:
        return block.to(dtype), Inputs(queries, features, None, None, None)
    rows: tuple[Tensor | None, Tensor | None] = None, None
    size: tuple[int, ...] = shape.batch, shape.words
    if shape.maps is not None:
        order = torch.rand(shape.batch, shape.words, generator=g, device=device).argsort(1)[:, : shape.maps]
        rows = torch.arange(shape.batch, device=device).repeat_interleave(order.shape[1]), order.flatten()
        size = (order.numel(),)
    maps = (2 * normal(*size, shape.patches)).softmax(-1)
    scale = maps.amax(-1).half()
    codes = (maps / scale.float()[..., None]).clamp(max=1).sqrt().mul(255).round().to(torch.uint8)
    weights = 1 - torch.rand(size, generator=g, device=device)
    return block.to(dtype), Inputs(queries, features, codes, scale, weights, *rows)


def _work(way: Way, block: InteractionQueryBlock, inputs: Inputs, choice: str) -> Work:
    return Work(
        run=lambda: way(block, inputs),
        leaves=(inputs.queries, inputs.features, *block.parameters()),
        constants=inputs.constants(),
        choice=choice,
        rows=inputs.row_batch,
        is_compared=inputs.target is not None,
    )


def _exact(block: InteractionQueryBlock, inputs: Inputs) -> Callable[[Tensor], Work]:
    def exact(picked: Tensor) -> Work:
        wide = InteractionQueryBlock(block.query_dim, block.feature_dim, block.heads)
        wide.load_state_dict(block.state_dict())
        return _work(folded, wide.to(picked.device, torch.float64), inputs.of(picked), "reference")

    return exact

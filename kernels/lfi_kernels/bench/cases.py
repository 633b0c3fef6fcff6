"""The block computed in several ways on the same parameters and inputs, each bound to a shape as a work to be timed.

`folded` is InteractionQueryBlock on the reference, which folds few queries; `fused` is it on the kernels; `projected`
builds K and V and one map a head; `sdpa` leaves the values to scaled_dot_product_attention and builds the map apart,
for the loss; `flex` leaves them to FlexAttention and takes the divergence from its log-sum-exp: sum T S = q . (K^T T),
so that no map is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

ON_GPU = ("fused", *ON_CPU, "compiled-folded", "compiled-projected", "compiled-flex")

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
        """What no gradient is taken of."""
        found = self.target, self.scale, self.weight, self.row_batch, self.row_query
        return tuple(each for each in found if each is not None)

    def of(self, picked: Tensor) -> Inputs:
        """Some samples, by their numbers, which increase; queries and features in float64."""
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


def folded(block: InteractionQueryBlock, given: Inputs) -> Outputs:
    """The block itself."""
    rows = {"row_batch": given.row_batch, "row_query": given.row_query}
    out: Outputs = block(given.queries, given.features, given.target, given.weight, given.scale, **rows)
    return out


def projected(block: InteractionQueryBlock, given: Inputs) -> Outputs:
    """Keys, values and one map a head, as attention is usually written."""
    q, k, v = _projections(block, given)
    scores = q @ k.mT
    return _state(block, given, scores.softmax(-1) @ v), _divergence(given, scores)


def sdpa(block: InteractionQueryBlock, given: Inputs) -> Outputs:
    """Values by scaled_dot_product_attention, and a map apart for the loss."""
    q, k, v = _projections(block, given)
    values = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    if given.row_batch is not None:
        scores = (q[given.row_batch, :, given.row_query][:, :, None] @ k[given.row_batch].mT)[:, :, 0]
        return _state(block, given, values), _compared(given, scores)
    return _state(block, given, values), _divergence(given, q @ k.mT if given.target is not None else q)


def flex(block: InteractionQueryBlock, given: Inputs) -> Outputs:
    """Values by FlexAttention, and the divergence from its log-sum-exp, without a map."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = _projections(block, given)
    values, lse = flex_attention(q, k, v, scale=1.0, return_lse=True)
    state = _state(block, given, values)
    if given.target is None:
        return state, lse.new_zeros(lse.shape)
    maps = _maps(given)
    entropy, total = torch.xlogy(maps, maps).sum(-1), maps.sum(-1)
    assert given.weight is not None
    if given.row_batch is not None:
        # [R, N] @ [R, H, N, d] -> [R, H, d]
        means = (maps.to(k.dtype)[:, None, None] @ k[given.row_batch])[:, :, 0]
        q_rows, lse = q[given.row_batch, :, given.row_query], lse[given.row_batch, :, given.row_query]
        scores = (q_rows.float() * means.float()).sum(-1)
        return state, given.weight[:, None] * (entropy[:, None] - scores + total[:, None] * lse)
    scores = (q.float() * (maps.to(k.dtype)[:, None] @ k).float()).sum(-1)
    return state, given.weight[:, None] * (entropy[:, None] - scores + total[:, None] * lse)


WAYS: dict[str, Way] = {"folded": folded, "projected": projected, "sdpa": sdpa, "flex": flex}


def _projections(block: InteractionQueryBlock, given: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, M, d], k and v [B, H, N, d]."""

    def split(rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], block.heads, -1).transpose(1, 2)

    x = F.layer_norm(given.features, (block.feature_dim,), eps=LAYER_NORM_EPS)
    q = F.layer_norm(given.queries, (block.query_dim,), eps=LAYER_NORM_EPS) @ block.w_q
    return split(q * (block.query_dim // block.heads) ** -0.5), split(x @ block.w_k), split(x @ block.w_v)


def _state(block: InteractionQueryBlock, given: Inputs, values: Tensor) -> Tensor:
    return given.queries + values.transpose(1, 2).flatten(2) @ block.w_o


def _maps(given: Inputs) -> Tensor:
    assert given.target is not None
    return decode_target(given.target, given.scale, "sqrt", torch.float32)


def _divergence(given: Inputs, scores: Tensor) -> Tensor:
    """Of the maps of scores [B, H, M, N]: kl [B, H, M] or [R, H]."""
    if given.target is None:
        return scores.new_zeros(scores.shape[:3], dtype=torch.float32)
    if given.row_batch is not None:
        return _compared(given, scores[given.row_batch, :, given.row_query])
    return _compared(given, scores)


def _compared(given: Inputs, scores: Tensor) -> Tensor:
    """Of scores that have a map each, [B, H, M, N] or [R, H, N]."""
    assert given.weight is not None
    maps = _maps(given)[:, None].expand(scores.shape)
    return F.kl_div(scores.float().log_softmax(-1), maps, reduction="none").sum(-1) * given.weight[:, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A work, and what makes the same of some samples, by their numbers, on the reference in float64."""

    work: Work
    exact: Callable[[Tensor], Work]


def case_names(device: str, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The cases that are asked for, in the order in which they are shown; all of the device's where none is.

    Raises:
        ValueError: the device has no such case.
    """
    choices = ON_GPU if device.startswith("cuda") else ON_CPU
    known("case", asked, choices, f" on {device}")
    return tuple(each for each in choices if each in asked or not asked)


def make_cases(shape: Shape, device: str, names: Sequence[str]) -> dict[str, Case]:
    """Bind the named cases to the same parameters and inputs."""
    block, given = make(shape, device)
    cases = {}
    for name in names:
        kind = name.removeprefix("compiled-")
        way = folded if kind == "fused" else WAYS[kind]
        if kind != name:
            way = torch.compile(way, dynamic=False)
        choice = FUSED if name == "fused" else "reference"
        cases[name] = Case(work=_work(way, block, given, choice), exact=_exact(block, given))
    return cases


def make(shape: Shape, device: str) -> tuple[InteractionQueryBlock, Inputs]:
    """A block whose every path carries something, and random inputs; drawn on the device, for they are large."""
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


def _work(way: Way, block: InteractionQueryBlock, given: Inputs, choice: str) -> Work:
    return Work(
        run=lambda: way(block, given),
        leaves=(given.queries, given.features, *block.parameters()),
        constants=given.constants(),
        choice=choice,
        rows=given.row_batch,
        is_compared=given.target is not None,
    )


def _exact(block: InteractionQueryBlock, given: Inputs) -> Callable[[Tensor], Work]:
    def exact(picked: Tensor) -> Work:
        wide = InteractionQueryBlock(block.query_dim, block.feature_dim, block.heads)
        wide.load_state_dict(block.state_dict())
        return _work(folded, wide.to(picked.device, torch.float64), given.of(picked), "reference")

    return exact

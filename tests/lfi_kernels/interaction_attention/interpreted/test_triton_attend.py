"""The attention kernels, launched by hand, against attention written out in float64 and its gradient by autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from lfi_kernels.interaction_attention.triton_attend import (
    forward_kernel,
    keys_kernel,
    map_rows,
    map_unit,
    queries_kernel,
)
from tests.lfi_kernels.interaction_attention.interpreted.test_triton_fused import DEVICE

BATCH, WORDS, PATCHES, HEADS, WIDTH = 2, 3, 20, 2, 8
QUERY_DIM, DIM = HEADS * WIDTH, 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Heads and queries of a program, and its patches; blocks of 16 hold them."""

    heads: int = HEADS
    words: int = 4
    patches: int = 16

    def constants(self) -> dict[str, Any]:
        sizes = {"N": PATCHES, "H": HEADS, "DH": WIDTH, "HP": self.heads, "W": self.words, "SQRT": False}
        return sizes | {"BLOCK_R": 16, "BLOCK_C": 16, "BLOCK_M": 16, "BLOCK_N": self.patches, "PRECISION": "tf32x3"}

    def programs(self) -> int:
        return BATCH * (HEADS // self.heads) * -(-WORDS // self.words)


LAYOUTS = pytest.mark.parametrize(
    "layout", [Layout(), Layout(heads=1), Layout(words=2), Layout(patches=32), Layout(heads=1, words=1)], ids=str
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """q [B, M, Dq], kv [B, N, 2 Dq], maps [B M, N] with weights [B M], ignored [B, N]."""

    q: Tensor
    kv: Tensor
    maps: Tensor
    weight: Tensor
    ignored: Tensor

    def pointers(self, row: Tensor | None = None) -> tuple[Tensor | None, ...]:
        return self.q, self.kv, self.maps, row, self.weight, None, self.ignored


@pytest.fixture
def given() -> Given:
    g = torch.Generator().manual_seed(0)
    maps = torch.rand(BATCH * WORDS, PATCHES, generator=g)
    maps[:, 3] = 0.0  # T log T of nothing
    ignored = torch.rand(BATCH, PATCHES, generator=g) < 0.3
    ignored[:, 0] = False
    drawn = {
        "q": torch.randn(BATCH, WORDS, QUERY_DIM, generator=g),
        "kv": torch.randn(BATCH, PATCHES, 2 * QUERY_DIM, generator=g),
        "maps": maps / maps.sum(-1, keepdim=True),
        "weight": torch.rand(BATCH * WORDS, generator=g) + 0.1,
        "ignored": ignored.to(torch.uint8),
    }
    return Given(**{name: each.to(DEVICE) for name, each in drawn.items()})


def nan(*size: int) -> Tensor:
    return torch.full(size, float("nan"), device=DEVICE)


def forward(given: Given, layout: Layout, row: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o [B, M, Dq], lse [B, H, M], kl and sum T [R, H], NaN where the kernel wrote nothing."""
    o, lse = nan(BATCH, WORDS, QUERY_DIM), nan(BATCH, HEADS, WORDS)
    kl, t_sum = nan(len(given.maps), HEADS), nan(len(given.maps), HEADS)
    outputs = (o, lse, kl, t_sum)
    sizes = (given.q.stride(0), WORDS)
    forward_kernel[(layout.programs(),)](*given.pointers(row), *outputs, *sizes, **layout.constants())
    return outputs


def heads_of(x: Tensor) -> Tensor:
    """[B, T, Dq] -> [B, H, T, d]."""
    return x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)


def written_out(given: Given, q: Tensor, kv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """o [B, M, Dq], lse [B, H, M] and kl [B M, H]."""
    key, value = (heads_of(each) for each in kv.chunk(2, -1))
    scores = heads_of(q) @ key.mT
    scores = scores.masked_fill(given.ignored[:, None, None] != 0, -math.inf)
    lse = scores.logsumexp(-1)
    o = ((scores - lse[..., None]).exp() @ value).transpose(1, 2).flatten(2)
    maps = given.maps.double().view(BATCH, 1, WORDS, PATCHES) * (given.ignored == 0)[:, None, None]
    apart = torch.xlogy(maps, maps) - maps * (scores - lse[..., None]).masked_fill(given.ignored[:, None, None] != 0, 0)
    kl = apart.sum(-1).transpose(1, 2).flatten(0, 1) * given.weight.double()[:, None]
    return o, lse, kl


def assert_near(found: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(found.double(), truth, atol=2e-5, rtol=1e-5)


@LAYOUTS
def test_every_layout_is_attention_written_out(given: Given, layout: Layout) -> None:
    found = forward(given, layout)
    o, lse, kl = written_out(given, given.q.double(), given.kv.double())
    for each, truth in zip(found, (o, lse, kl), strict=False):
        assert_near(each, truth)
    counted = (given.maps.view(BATCH, WORDS, PATCHES) * (given.ignored == 0)[:, None]).double().sum(-1)
    assert_near(found[3], counted.flatten()[:, None].expand(-1, HEADS))


def test_queries_that_have_no_map_write_no_divergence(given: Given) -> None:
    """One query has the first map; the other maps belong to nobody."""
    row = torch.full((BATCH, WORDS), -1, dtype=torch.int32, device=DEVICE)
    row[1, 2] = 0
    o, lse, kl, t_sum = forward(given, Layout(words=1), row)
    dense = forward(given, Layout(words=1))
    assert torch.equal(o, dense[0])
    assert torch.equal(lse, dense[1])
    assert kl[1:].isnan().all()
    assert t_sum[1:].isnan().all()
    first = given.maps.clone()
    first[-1] = given.maps[0]
    weight = given.weight.clone()
    weight[-1] = given.weight[0]
    moved = Given(q=given.q, kv=given.kv, maps=first, weight=weight, ignored=given.ignored)
    assert torch.equal(kl[0], forward(moved, Layout(words=1))[2][-1])


def test_a_sample_whose_patches_are_all_ignored_gives_zeros(given: Given) -> None:
    given.ignored[1] = 1
    given.kv[1] = float("nan")
    o, lse, kl, t_sum = forward(given, Layout())
    assert (o[1] == 0).all()
    assert (lse[1] == math.inf).all()
    assert (kl[WORDS:] == 0).all()
    assert (t_sum[WORDS:] == 0).all()
    assert (o[0] != 0).all()


@LAYOUTS
@pytest.mark.parametrize("norm", [True, False], ids=["layer norm", "none"])
def test_gradients_of_queries_keys_and_values_are_those_of_autograd(given: Given, layout: Layout, norm: bool) -> None:
    """In one kernel where a block holds all queries, else in two; with layer norm times rstd, and what it takes off."""
    g = torch.Generator().manual_seed(1)
    do, dkl = torch.randn(given.q.shape, generator=g).to(DEVICE), torch.randn(6, HEADS, generator=g).to(DEVICE)
    rstd = (torch.rand(BATCH, PATCHES, generator=g) + 0.5).to(DEVICE) if norm else None
    o, lse, _, t_sum = forward(given, layout)
    delta = heads_of(o * do).sum(-1).contiguous()
    groups, is_one = HEADS // layout.heads, layout.words >= WORDS
    dq, found = nan(BATCH, WORDS, QUERY_DIM), nan(BATCH, PATCHES, 2 * QUERY_DIM)
    coef = nan(groups, BATCH, PATCHES)
    pointers = (*given.pointers(), do, lse, delta, t_sum, dkl, rstd)
    sizes = (given.q.stride(0), WORDS, BATCH * PATCHES, 1.0 / DIM)
    queries_kernel[(layout.programs(),)](
        *(*pointers, dq, found if is_one else None, coef if is_one else None, *sizes), **layout.constants()
    )
    if not is_one:
        programs = BATCH * groups * -(-PATCHES // layout.patches)
        keys_kernel[(programs,)](*(*pointers, found, coef, *sizes), **layout.constants())

    q, kv = given.q.double().requires_grad_(), given.kv.double().requires_grad_()
    state, _, kl = written_out(given, q, kv)
    truth_q, truth_kv = torch.autograd.grad([state, kl], [q, kv], [do.double(), dkl.double()])
    assert_near(dq, truth_q)
    if rstd is None:
        assert_near(found, truth_kv)
        assert coef.isnan().all()
        return
    assert_near(found, truth_kv * rstd.double()[..., None])
    assert_near(coef.sum(0), (truth_kv * kv.detach()).sum(-1) * rstd.double() ** 2 / DIM)
    assert (found[given.ignored != 0] == 0).all()


@triton.jit
def rows_kernel(p_row, p_weight, p_scale, p_out, M, SQRT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row, weight and unit of the maps of sample 1, one query a lane; -7 stands for what nobody may look at."""
    o_m = tl.arange(0, 4)
    o_row, b_w = map_rows(p_row, p_weight, 1, o_m, o_m < M, M)
    tl.store(p_out + o_m, tl.where(b_w != 0.0, o_row, -7).to(tl.float32))
    tl.store(p_out + 4 + o_m, b_w)
    tl.store(p_out + 8 + o_m, map_unit(p_scale, o_row, b_w != 0.0, SQRT))


@pytest.mark.parametrize(
    ("row", "weight", "scale", "expected"),
    [
        (None, None, None, [[3, 4, 5, -7], [1, 1, 1, 0], [1, 1, 1, 0]]),
        (None, [9, 9, 9, 0.5, 0, 2], None, [[3, -7, 5, -7], [0.5, 0, 2, 0], [1, 0, 1, 0]]),
        ([0, -1, -1, 2, -1, 1], [9, 0.25, 4], [9, 255, 510], [[2, -7, 1, -7], [4, 0, 0.25, 0], [2, 0, 1, 0]]),
    ],
    ids=["dense", "weighted", "in rows"],
)
@pytest.mark.parametrize("sqrt", [True, False])
def test_each_query_finds_its_map_its_weight_and_what_a_code_is_worth(
    row: list[int] | None, weight: list[float] | None, scale: list[float] | None, expected: list[Any], sqrt: bool
) -> None:
    out = nan(3, 4)
    told = [
        None if each is None else torch.tensor(each, dtype=torch.float32, device=DEVICE) for each in (weight, scale)
    ]
    rows = None if row is None else torch.tensor(row, dtype=torch.int32, device=DEVICE)
    rows_kernel[(1,)](rows, *told, out, WORDS, SQRT=sqrt)
    truth = torch.tensor(expected, dtype=torch.float32, device=DEVICE)
    if scale is not None and sqrt:
        truth[2] /= 255  # a curve of squares is 255^2 where it is whole
    torch.testing.assert_close(out, truth)

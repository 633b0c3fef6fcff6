"""The ways of computing the block against the block written out head by head, and what is bound to a shape."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_kernels.bench.cases import ON_CPU, ON_GPU, WAYS, Inputs, case_names, make, make_cases
from lfi_kernels.bench.shapes import Shape
from lfi_kernels.interaction_query import LAYER_NORM_EPS, InteractionQueryBlock

TINY = Shape(model="ViT-T/16", batch=3, heads=4, words=3, patches=7, query_dim=16)
MAPS = pytest.mark.parametrize("maps", [None, 2, 0], ids=["every word has a map", "two words have", "none has"])


def written_out(block: InteractionQueryBlock, given: Inputs) -> tuple[Tensor, dict[tuple[int, int, int], float]]:
    """State [B, M, Dq], and weight * KL of every map by (sample, query, head); in float64, one number at a time."""
    weights = [each.detach().double() for each in (block.w_q, block.w_k, block.w_v, block.w_o)]
    queries, features = given.queries.detach().double(), given.features.detach().double()
    batch, words, query_dim = queries.shape
    width = query_dim // block.heads
    state, found = queries.clone(), {}
    rows = {}
    if given.row_batch is not None and given.row_query is not None:
        rows = {
            pair: row for row, pair in enumerate(zip(given.row_batch.tolist(), given.row_query.tolist(), strict=True))
        }
    for b in range(batch):
        x = F.layer_norm(features[b], features.shape[2:], eps=LAYER_NORM_EPS)
        for m in range(words):
            q = F.layer_norm(queries[b, m], queries.shape[2:], eps=LAYER_NORM_EPS)
            values = []
            for head in range(block.heads):
                part = slice(head * width, (head + 1) * width)
                key, value = x @ weights[1][:, part], x @ weights[2][:, part]
                attention = torch.softmax(key @ (q @ weights[0][:, part]) / math.sqrt(width), 0)
                values.append(attention @ value)
                place = rows.get((b, m)) if given.row_batch is not None else (b, m)
                if given.target is None or place is None:
                    continue
                assert given.scale is not None
                assert given.weight is not None
                codes = given.target[place].double()
                target = float(given.scale[place]) * (codes / 255) ** 2
                terms = [
                    t * (math.log(t) - math.log(a))
                    for t, a in zip(target.tolist(), attention.tolist(), strict=True)
                    if t
                ]
                found[b, m, head] = float(given.weight[place]) * sum(terms)
            state[b, m] += torch.cat(values) @ weights[3]
    return state, found


@MAPS
@pytest.mark.parametrize("way", ["folded", "projected", "sdpa"])
def test_every_way_is_the_block_written_out(way: str, maps: int | None) -> None:
    block, given = make(replace(TINY, maps=maps), "cpu")
    out, kl = WAYS[way](block, given)
    out, kl = out.detach(), kl.detach()
    state, divergences = written_out(block, given)
    torch.testing.assert_close(out.double(), state, atol=1e-5, rtol=1e-5)
    places = [(b, m) for b in range(TINY.batch) for m in range(TINY.words)]
    if given.row_batch is not None and given.row_query is not None:
        places = list(zip(given.row_batch.tolist(), given.row_query.tolist(), strict=True))
        kl = kl.flatten(1)
        rows = {place: kl[row] for row, place in enumerate(places)}
    elif given.target is not None:
        rows = {(b, m): kl[b, :, m] for b, m in places}
    else:
        assert (kl == 0).all()
        rows = {}
    assert len(divergences) == TINY.heads * len(rows)
    for (b, m, head), expected in divergences.items():
        assert float(rows[b, m][head]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@MAPS
def test_inputs_are_as_the_shape_says(maps: int | None) -> None:
    block, given = make(replace(TINY, maps=maps), "cpu")
    assert given.queries.shape == (3, 3, 16)
    assert given.features.shape == (3, 7, 192)
    assert given.queries.requires_grad
    assert given.features.requires_grad
    assert all(weight.abs().sum() > 0 for weight in block.parameters())  # w_o of a new block is zero: no path may be
    assert not any(each.requires_grad for each in given.constants())
    if maps == 0:
        assert given.constants() == ()
        return
    assert given.target is not None
    assert given.scale is not None
    assert given.weight is not None
    assert given.target.shape == ((3, 3, 7) if maps is None else (6, 7))
    assert (given.target.amax(-1) == 255).all()
    assert ((given.weight > 0) & (given.weight <= 1)).all()
    if maps is None:
        assert given.row_batch is given.row_query is None
        return
    assert given.row_batch is not None
    assert given.row_query is not None
    assert given.row_batch.tolist() == [0, 0, 1, 1, 2, 2]
    assert all(len(set(given.row_query[2 * b : 2 * b + 2].tolist())) == 2 for b in range(3))


def test_the_same_shape_draws_the_same_numbers_in_its_dtype() -> None:
    first, second = (make(TINY, "cpu") for _ in range(2))
    narrow_block, narrow = make(replace(TINY, dtype="bf16"), "cpu")
    assert torch.equal(first[1].features, second[1].features)
    assert narrow.features.dtype == next(narrow_block.parameters()).dtype == torch.bfloat16
    assert torch.equal(narrow.features, first[1].features.bfloat16())
    for weight, again, cast in zip(
        first[0].parameters(), second[0].parameters(), narrow_block.parameters(), strict=True
    ):
        assert torch.equal(weight, again)
        assert torch.equal(weight.bfloat16(), cast)


@pytest.mark.parametrize("maps", [None, 2, 0])
def test_some_samples_are_those_of_the_whole(maps: int | None) -> None:
    """Outputs of samples 0 and 2 in float64, picked before and after."""
    block, given = make(replace(TINY, maps=maps), "cpu")
    picked = torch.tensor([0, 2])
    out, kl = make_cases(replace(TINY, maps=maps), "cpu", ["folded"])["folded"].exact(picked).run()
    assert out.dtype == torch.float64
    state, divergences = written_out(block, given)
    torch.testing.assert_close(out, state[picked], atol=1e-9, rtol=1e-9)
    expected = [value for (b, _, _), value in divergences.items() if b in (0, 2)]
    if maps != 0:
        assert sorted(kl.flatten().tolist()) == pytest.approx(sorted(expected), rel=1e-6)


def test_works_share_their_leaves_and_say_how_they_run() -> None:
    made = make_cases(replace(TINY, maps=2), "cpu", ON_CPU)
    assert tuple(made) == ON_CPU
    works = [case.work for case in made.values()]
    for work in works:
        assert [id(each) for each in work.leaves] == [id(each) for each in works[0].leaves]
        assert len(work.leaves) == 2 + 4  # queries and features, and the four weights
        assert len(work.constants) == 5
        assert work.choice == "reference"
        assert work.is_compared
        assert work.rows is not None
    assert make_cases(TINY, "cpu", ["fused"])["fused"].work.choice == "triton"
    assert not make_cases(replace(TINY, maps=0), "cpu", ["folded"])["folded"].work.is_compared


def test_names_come_in_their_own_order_and_those_of_the_device_alone() -> None:
    assert case_names("cpu") == ON_CPU
    assert case_names("cuda:1") == ON_GPU
    assert case_names("cpu", ["sdpa", "folded"]) == ("folded", "sdpa")
    with pytest.raises(ValueError, match=r"^Unknown case 'fused' on cpu\. Choices: folded, projected, sdpa\.$"):
        case_names("cpu", ["folded", "fused"])


def test_features_as_a_students_taps_lay_them_out_are_the_same_numbers() -> None:
    both = make_cases(TINY, "cpu", ["fused", "fused-nchw"])
    plain, taps = (both[name].work.leaves[1] for name in both)
    assert torch.equal(plain, taps)
    assert taps.stride() == (TINY.dim * TINY.patches, 1, TINY.patches)
    assert taps.requires_grad
    assert both["fused-nchw"].work.choice == both["fused"].work.choice == "triton"

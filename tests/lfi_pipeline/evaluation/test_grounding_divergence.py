"""Jensen-Shannon divergence: its properties, scipy's value, and maps on different grids."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from torch import Tensor

from lfi_pipeline.evaluation.grounding import jensen_shannon, tap_divergences

SIDES = st.integers(1, 6)
FEW = settings(max_examples=40, deadline=None)


@st.composite
def some_maps(draw: st.DrawFn, rows: st.SearchStrategy[int] = SIDES, columns: st.SearchStrategy[int] = SIDES) -> Tensor:
    """[1, rows, columns], with zeros among its cells, and some mass."""
    shape = draw(rows), draw(columns)
    size = shape[0] * shape[1]
    values = draw(st.lists(st.just(0.0) | st.floats(1e-6, 1.0), min_size=size, max_size=size).filter(any))
    return torch.tensor(values).view(1, *shape)


def refined(maps: Tensor, factor: int) -> Tensor:
    return maps.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


@FEW
@given(some_maps(), st.floats(0.01, 100))
def test_equal_maps_do_not_diverge(maps: Tensor, factor: float) -> None:
    assert jensen_shannon(maps, factor * maps).item() == pytest.approx(0, abs=1e-6)


@FEW
@given(some_maps(), some_maps())
def test_it_is_symmetric_and_within_ln_2(left: Tensor, right: Tensor) -> None:
    found = jensen_shannon(left, right).item()
    assert 0 <= found <= math.log(2)
    assert found == pytest.approx(jensen_shannon(right, left).item(), abs=1e-12)


@FEW
@given(some_maps(st.just(3), st.just(4)), some_maps(st.just(3), st.just(4)))
def test_it_is_the_mean_of_scipys_two_relative_entropies(left: Tensor, right: Tensor) -> None:
    p, q = (each.double().numpy() / each.double().sum().item() for each in (left, right))
    expected = (rel_entr(p, (p + q) / 2).sum() + rel_entr(q, (p + q) / 2).sum()) / 2
    assert jensen_shannon(left, right).item() == pytest.approx(float(expected), abs=1e-9)


@FEW
@given(some_maps(st.just(2), st.just(3)), some_maps(st.just(2), st.just(3)), st.integers(2, 4))
def test_a_finer_grid_with_the_same_mass_changes_nothing(left: Tensor, right: Tensor, factor: int) -> None:
    expected = jensen_shannon(left, right).item()
    for first, second in ((refined(left, factor), right), (left, refined(right, factor))):
        assert jensen_shannon(first, second).item() == pytest.approx(expected, abs=1e-6)
    both = jensen_shannon(refined(left, factor), refined(right, factor)).item()
    assert both == pytest.approx(expected, abs=1e-6)


def test_nothing_in_common_is_ln_2() -> None:
    left, right = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]])
    assert jensen_shannon(left, right).item() == pytest.approx(math.log(2), abs=1e-12)


def test_grids_that_do_not_nest_keep_mass_where_it_was() -> None:
    """Two cells on three: the middle one gets a third of its mass from either side."""
    left, right = torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[0.5, 1 / 3, 1 / 6]]])
    assert jensen_shannon(left, right).item() == pytest.approx(0, abs=1e-7)
    assert jensen_shannon(left, right.flip(-1)).item() > 0.01


def test_a_map_of_zeros_has_no_divergence() -> None:
    maps = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]], [[0.5, 0.5]]])
    assert jensen_shannon(maps, maps[[0, 0, 1]]).isnan().tolist() == [False, True, True]


def test_each_tap_is_compared_with_the_one_before_over_the_words_that_have_maps() -> None:
    one, other, nothing = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2)
    taps = [torch.stack([one, one, nothing]), torch.stack([one, other, other]), torch.stack([nothing] * 3)]
    first, second = tap_divergences(taps)
    assert first == pytest.approx(math.log(2) / 2)
    assert second is None
    assert tap_divergences(taps[:1]) == []
    assert tap_divergences([]) == []

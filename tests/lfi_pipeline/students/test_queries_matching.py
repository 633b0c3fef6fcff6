"""The assignment of slots to words against all permutations, and what must not take a slot."""

from __future__ import annotations

from itertools import permutations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfi_pipeline.students.queries import match_slots, matched_cost


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Costs [B, K, M] and present words [B, M]."""
    batch, slots, words = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    cost = torch.rand(batch, slots, words, generator=generator, dtype=torch.float64)
    present = torch.rand(batch, words, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return cost, present


def least_total(cost: Tensor, present: list[int]) -> float:
    """The least total cost over all one-to-one choices of min(K, words) pairs."""
    slots = cost.shape[0]
    if len(present) <= slots:
        choices = (list(zip(order, present, strict=True)) for order in permutations(range(slots), len(present)))
    else:
        choices = (list(zip(range(slots), order, strict=True)) for order in permutations(present, slots))
    return min(sum((float(cost[k, m]) for k, m in pairs), start=0.0) for pairs in choices)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_no_permutation_costs_less(problem: tuple[Tensor, Tensor]) -> None:
    cost, present = problem
    match = match_slots(cost, present)
    total = matched_cost(cost, match).sum(1)
    for image in range(len(cost)):
        words = present[image].nonzero()[:, 0].tolist()
        taken = match[image][match[image] >= 0].tolist()
        assert len(taken) == len(set(taken)) == min(len(words), cost.shape[1])
        assert all(slot < cost.shape[1] for slot in taken)
        torch.testing.assert_close(float(total[image]), least_total(cost[image], words))


@settings(max_examples=40, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_words_and_slots_is_of_no_account(problem: tuple[Tensor, Tensor], random: object) -> None:
    cost, present = problem
    words, slots = list(range(cost.shape[2])), list(range(cost.shape[1]))
    random.shuffle(words)  # type: ignore[attr-defined]
    random.shuffle(slots)  # type: ignore[attr-defined]
    found = match_slots(cost[:, slots][:, :, words], present[:, words])
    named = torch.tensor([*slots, -1])[found]  # -1 stays -1
    assert torch.equal(named, match_slots(cost, present)[:, words])


@settings(max_examples=40, deadline=None)
@given(problems())
def test_words_that_are_not_present_take_no_slot_and_change_nothing(problem: tuple[Tensor, Tensor]) -> None:
    cost, present = problem
    match = match_slots(cost, present)
    assert (match[~present] == -1).all()
    tempting = torch.where(present[:, None], cost, -100.0)
    assert torch.equal(match_slots(tempting, present), match)


def test_costs_that_are_not_numbers_are_matched_last() -> None:
    cost = torch.tensor([[[float("nan"), 1.0], [2.0, float("inf")], [3.0, 3.0]]])
    assert match_slots(cost, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[1, 0]]


def test_only_matched_pairs_pass_gradient() -> None:
    cost = torch.tensor([[[1.0, 9.0, 5.0], [9.0, 2.0, 5.0]]], requires_grad=True)
    match = match_slots(cost, torch.ones(1, 3, dtype=torch.bool))
    assert match.tolist() == [[0, 1, -1]]
    own = matched_cost(cost, match)
    assert own.tolist() == [[1.0, 2.0, 0.0]]
    own.sum().backward()
    assert cost.grad is not None
    assert cost.grad.tolist() == [[[1, 0, 0], [0, 1, 0]]]

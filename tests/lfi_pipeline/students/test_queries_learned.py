"""Learned slots: their maps and states one row at a time, the match they get, and what gradient reaches."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from lfi_pipeline.students import LearnedQueries, QueryConfig

B, M, K, WIDTH, HEADS = 2, 3, 4, 8, 2
GRIDS, WIDTHS = (9, 4), (6, 10)


def make(state: str = "persistent", *, slots: int = K, heads: int = HEADS, live_output: bool = True) -> LearnedQueries:
    torch.manual_seed(1)
    config = QueryConfig(mode="learned", slots=slots, width=WIDTH, heads=heads, state=state)
    queries = LearnedQueries(WIDTHS, config).double()
    if live_output:  # W_o starts at zero, which would hide the state
        for block in queries.blocks:
            torch.nn.init.normal_(block.w_o, std=0.5)
    return queries


def inputs() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    features = [
        torch.randn(B, n, d, generator=generator, dtype=torch.float64) for n, d in zip(GRIDS, WIDTHS, strict=True)
    ]
    targets = [(2 * torch.randn(B, M, n, generator=generator, dtype=torch.float64)).softmax(-1) for n in GRIDS]
    weights = [torch.rand(B, M, generator=generator, dtype=torch.float64) + 0.1 for _ in GRIDS]
    return features, targets, weights


def pair_costs(
    queries: LearnedQueries, features: list[Tensor], targets: list[Tensor], weights: list[Tensor]
) -> list[Tensor]:
    """w_m mean_h KL(T_m || P_k) [B, K, M] of each tap, from the blocks' own maps."""
    costs = []
    first = state = queries.slots.expand(B, -1, -1)
    for block, x, target, weight in zip(queries.blocks, features, targets, weights, strict=True):
        maps = block.attention(state, x)[:, :, :, None]  # [B, H, K, 1, N]
        kl = (target[:, None, None] * (target[:, None, None].log() - maps.log())).sum(-1).mean(1)
        costs.append(kl * weight[:, None])
        state = block(state, x)[0] if queries.state == "persistent" else first
    return costs


@pytest.mark.parametrize("state", ["persistent", "reset"])
def test_each_word_gets_the_divergence_of_the_best_match_over_all_taps(state: str) -> None:
    queries, (features, targets, weights) = make(state), inputs()
    output = queries(features, targets, weights)
    costs = pair_costs(queries, features, targets, weights)
    total = torch.stack(costs).sum(0).detach()
    assert output.match is not None
    for b in range(B):
        best = min(permutations(range(K), M), key=lambda order: sum(float(total[b, k, m]) for m, k in enumerate(order)))
        assert output.match[b].tolist() == list(best)
        for kl, cost in zip(output.kl, costs, strict=True):
            torch.testing.assert_close(kl[b], torch.stack([cost[b, k, m] for m, k in enumerate(best)]))


@pytest.mark.parametrize("state", ["persistent", "reset"])
def test_states_and_maps_do_not_depend_on_targets(state: str) -> None:
    queries, (features, targets, weights) = make(state), inputs()
    plain, taught = queries(features), queries(features, targets, weights)
    assert plain.kl == []
    assert plain.match is None
    torch.testing.assert_close(plain.states, taught.states)
    torch.testing.assert_close(plain.seeds, queries.slots.expand(B, -1, -1))
    for maps, n in zip(queries.maps(features), GRIDS, strict=True):
        assert maps.shape == (B, K, n)
        torch.testing.assert_close(maps.sum(-1), torch.ones(B, K, dtype=torch.float64))


def test_persistent_carries_the_state_and_reset_does_not() -> None:
    features, _, _ = inputs()
    persistent, reset = make("persistent"), make("reset")
    torch.testing.assert_close(persistent.maps(features)[0], reset.maps(features)[0])
    assert (persistent.maps(features)[1] - reset.maps(features)[1]).abs().max() > 1e-3
    torch.testing.assert_close(reset(features).states, reset.blocks[-1](reset.slots.expand(B, -1, -1), features[-1])[0])


def test_slots_start_out_at_right_angles() -> None:
    slots = make(live_output=False).slots
    torch.testing.assert_close(slots @ slots.T, WIDTH * torch.eye(K, dtype=torch.float64), atol=1e-5, rtol=0)


def test_gradient_reaches_slots_and_features_from_the_divergence_and_from_the_states() -> None:
    queries, (features, targets, weights) = make(), inputs()
    for x in features:
        x.requires_grad_()
    output = queries(features, targets, weights)
    for loss in (torch.stack([kl.sum() for kl in output.kl]).sum(), output.states.square().sum()):
        for gradient in torch.autograd.grad(loss, [queries.slots, *features], retain_graph=True):
            assert gradient.isfinite().all()
            assert gradient.any()


def test_gradient_of_the_divergence_stays_with_matched_slots() -> None:
    queries, (features, targets, weights) = make("reset"), inputs()
    output = queries(features, targets, weights)
    assert output.match is not None
    torch.stack([kl.sum() for kl in output.kl]).sum().backward()
    taken = {slot for row in output.match.tolist() for slot in row}
    assert queries.slots.grad is not None
    for slot in range(K):
        assert bool(queries.slots.grad[slot].any()) == (slot in taken)


def test_the_order_of_words_only_reorders_the_answer() -> None:
    queries, (features, targets, weights) = make(), inputs()
    order = [2, 0, 1]
    output = queries(features, targets, weights)
    turned = queries(features, [t[:, order] for t in targets], [w[:, order] for w in weights])
    assert torch.equal(turned.match, output.match[:, order])
    for a, b in zip(output.kl, turned.kl, strict=True):
        torch.testing.assert_close(a[:, order], b)


def test_the_loss_is_zero_where_the_targets_are_the_slots_own_maps() -> None:
    queries, (features, targets, weights) = make(heads=1), inputs()
    chosen = [3, 1, 0]
    own = [maps[:, chosen].detach() for maps in queries.maps(features)]
    output = queries(features, own, weights)
    assert output.match.tolist() == [chosen] * B
    for kl in output.kl:
        torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-9, rtol=0)
    assert sum(kl.sum() for kl in queries(features, targets, weights).kl) > 1e-2


def test_padded_words_take_no_slot_and_may_hold_anything() -> None:
    queries, (features, targets, weights) = make(slots=2), inputs()
    for weight, target in zip(weights, targets, strict=True):
        weight[:, 1] = 0
        target[:, 1] = float("nan")
    output = queries(features, targets, weights)
    assert output.match[:, 1].tolist() == [-1] * B
    assert sorted(output.match[0, [0, 2]].tolist()) == [0, 1]
    assert all(not kl[:, 1].any() for kl in output.kl)


def test_a_word_that_one_tap_does_not_see_is_still_matched() -> None:
    queries, (features, targets, weights) = make(), inputs()
    weights[0][:, 1] = 0
    output = queries(features, targets, weights)
    assert (output.match >= 0).all()
    assert not output.kl[0][:, 1].any()
    assert (output.kl[1][:, 1] > 0).all()


def test_images_without_any_word_are_free_of_nan() -> None:
    queries, (features, targets, _) = make(), inputs()
    nothing = [torch.zeros(B, M, dtype=torch.float64) for _ in GRIDS]
    output = queries(features, [torch.zeros_like(target) for target in targets], nothing)
    assert (output.match == -1).all()
    loss = torch.stack([kl.sum() for kl in output.kl]).sum()
    assert loss.item() == 0
    (loss + output.states.sum()).backward()
    assert all(p.grad.isfinite().all() for p in queries.parameters() if p.grad is not None)


def test_more_words_than_slots_leave_words_without_one() -> None:
    queries, (features, targets, weights) = make(slots=2), inputs()
    output = queries(features, targets, weights)
    for row, match in enumerate(output.match):
        assert sorted(match.tolist()) == [-1, 0, 1]
        assert all(not kl[row][match == -1].any() for kl in output.kl)


def test_names_in_a_checkpoint_are_stable() -> None:
    blocks = [f"blocks.{tap}.w_{name}" for tap in (0, 1) for name in "qkvo"]
    assert list(make().state_dict()) == ["slots", *blocks]

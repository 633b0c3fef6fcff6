"""Text queries against a hand-written loop over images, words, heads and taps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students import QueryConfig, QueryOutput, TextQueries

B, M, E, WIDTH, HEADS = 2, 3, 5, 8, 2
GRIDS, WIDTHS = (9, 4), (6, 10)


def make(state: str = "persistent", *, live_output: bool = True, presence: bool = False) -> TextQueries:
    torch.manual_seed(1)
    queries = TextQueries(E, WIDTHS, QueryConfig(width=WIDTH, heads=HEADS, state=state), presence=presence).double()
    if live_output:  # W_o starts at zero, which would hide the state
        for block in queries.blocks:
            torch.nn.init.normal_(block.w_o, std=0.5)
    return queries


def inputs() -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    words = torch.randn(B, M, E, generator=generator, dtype=torch.float64)
    features = [
        torch.randn(B, n, d, generator=generator, dtype=torch.float64) for n, d in zip(GRIDS, WIDTHS, strict=True)
    ]
    targets = [torch.rand(B, M, n, generator=generator, dtype=torch.float64).softmax(-1) for n in GRIDS]
    weights = [torch.rand(B, M, generator=generator, dtype=torch.float64) for _ in GRIDS]
    return words, features, targets, weights


def loss_of(output: QueryOutput, weights: list[Tensor]) -> Tensor:
    """Mean over taps of L_t = sum_m w_m mean_h KL / sum_m w_m, DESIGN section 5."""
    taps = [kl.sum() / weight.sum().clamp_min(1e-6) for kl, weight in zip(output.kl, weights, strict=True)]
    return torch.stack(taps).mean()


def by_hand(
    queries: TextQueries, words: Tensor, features: list[Tensor], state: str
) -> list[dict[tuple[int, int], list[Tensor]]]:
    """P of every tap: (image, word) -> one distribution a head, from DESIGN section 5 one row at a time."""
    d = WIDTH // HEADS
    per_tap: list[dict[tuple[int, int], list[Tensor]]] = [{} for _ in features]
    for b in range(B):
        for m in range(M):
            first = queries.seed.weight @ words[b, m] + queries.seed.bias
            q = first
            for t, (block, x) in enumerate(zip(queries.blocks, features, strict=True)):
                tokens = F.layer_norm(x[b], x.shape[-1:])
                normal = F.layer_norm(q, q.shape)
                values = []
                for h in range(HEADS):
                    part = slice(h * d, (h + 1) * d)
                    keys = tokens @ block.w_k[:, part]
                    p = torch.softmax(keys @ (normal @ block.w_q[:, part]) / math.sqrt(d), 0)
                    per_tap[t].setdefault((b, m), []).append(p)
                    values.append(p @ (tokens @ block.w_v[:, part]))
                q = first if state == "reset" else q + torch.cat(values) @ block.w_o
    return per_tap


@pytest.mark.parametrize("state", ["persistent", "reset"])
def test_divergences_and_maps_equal_a_loop_over_every_row(state: str) -> None:
    queries, (words, features, targets, weights) = make(state), inputs()
    by_tap = by_hand(queries, words, features, state)
    found = queries(words, features, targets, weights).kl
    for rows, target, weight, kl in zip(by_tap, targets, weights, found, strict=True):
        assert kl.shape == (B, M)
        for (b, m), heads in rows.items():
            expected = sum((target[b, m] * (target[b, m].log() - p.log())).sum() for p in heads) / HEADS
            torch.testing.assert_close(kl[b, m], weight[b, m] * expected)

    for rows, maps in zip(by_tap, queries.maps(words, features), strict=True):
        for (b, m), heads in rows.items():
            torch.testing.assert_close(maps[b, m], torch.stack(heads).mean(0))


@pytest.mark.parametrize("state", ["persistent", "reset"])
def test_the_output_holds_the_seeds_and_the_state_after_the_last_tap(state: str) -> None:
    queries, (words, features, targets, weights) = make(state), inputs()
    output = queries(words, features, targets, weights)
    expected = queries.seed(words)
    torch.testing.assert_close(output.seeds, expected)
    for block, x in list(zip(queries.blocks, features, strict=True))[0 if state == "persistent" else -1 :]:
        expected = block(expected, x)[0]
    torch.testing.assert_close(output.states, expected)


def test_without_targets_the_states_are_the_same_and_nothing_is_compared() -> None:
    queries, (words, features, targets, weights) = make(), inputs()
    output = queries(words, features)
    assert output.kl == []
    torch.testing.assert_close(output.states, queries(words, features, targets, weights).states)


def test_rows_of_maps_sum_to_one() -> None:
    queries, (words, features, _, _) = make(), inputs()
    for maps, n in zip(queries.maps(words, features), GRIDS, strict=True):
        assert maps.shape == (B, M, n)
        torch.testing.assert_close(maps.sum(-1), torch.ones(B, M, dtype=torch.float64))


def test_persistent_and_reset_agree_at_the_first_tap_only() -> None:
    words, features, _, _ = inputs()
    persistent, reset = make("persistent").maps(words, features), make("reset").maps(words, features)
    torch.testing.assert_close(persistent[0], reset[0])
    assert (persistent[1] - reset[1]).abs().max() > 1e-3


def test_persistent_and_reset_part_once_training_has_moved_the_output_projection() -> None:
    words, features, targets, weights = inputs()
    maps = {}
    for state in ("persistent", "reset"):
        queries = make(state, live_output=False)
        assert all(not block.w_o.any() for block in queries.blocks)
        if state == "persistent":
            loss_of(queries(words, features, targets, weights), weights).backward()
            moved = queries.blocks[0].w_o.grad
            assert moved.abs().max() > 0
            with torch.no_grad():
                queries.blocks[0].w_o -= 5 * moved
        maps[state] = queries.maps(words, features)
    assert (maps["persistent"][1] - maps["reset"][1]).abs().max() > 1e-6


def test_reset_leaves_the_state_of_earlier_taps_without_gradient() -> None:
    queries, (words, features, targets, weights) = make("reset"), inputs()
    loss_of(queries(words, features, targets, weights), weights).backward()
    assert not any(block.w_v.grad is not None and block.w_v.grad.any() for block in queries.blocks)


def test_words_without_weight_change_nothing() -> None:
    queries, (words, features, targets, weights) = make(), inputs()
    for weight in weights:
        weight[:, -1] = 0
    full = queries(words, features, targets, weights)
    assert all(not kl[:, -1].any() for kl in full.kl)
    dropped = queries(words[:, :-1], features, [t[:, :-1] for t in targets], [w[:, :-1] for w in weights])
    for target in targets:
        target[:, -1] = float("nan")
    for a, b, c in zip(full.kl, dropped.kl, queries(words, features, targets, weights).kl, strict=True):
        torch.testing.assert_close(a[:, :-1], b)
        torch.testing.assert_close(a, c)


def test_without_any_word_the_loss_is_zero_and_passes_no_gradient() -> None:
    queries, (words, features, targets, _) = make(), inputs()
    weights = [torch.zeros(B, M, dtype=torch.float64) for _ in GRIDS]
    loss = loss_of(queries(words, features, targets, weights), weights)
    assert loss.item() == 0
    loss.backward()
    assert not any(p.grad.any() for p in queries.parameters() if p.grad is not None)


def test_loss_is_zero_where_the_targets_are_the_queries_own_maps() -> None:
    words, features, targets, weights = inputs()
    torch.manual_seed(0)
    one_head = TextQueries(E, WIDTHS, QueryConfig(width=WIDTH, heads=1)).double()
    own = [maps.detach() for maps in one_head.maps(words, features)]
    assert loss_of(one_head(words, features, own, weights), weights).item() == pytest.approx(0, abs=1e-9)
    assert loss_of(one_head(words, features, targets, weights), weights).item() > 1e-3


def test_divergences_are_proportional_to_the_weights() -> None:
    queries, (words, features, targets, weights) = make(), inputs()
    once, twice = (queries(words, features, targets, [f * w for w in weights]).kl for f in (1, 2))
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * a, b)


def test_as_many_targets_as_taps_are_needed() -> None:
    queries, (words, features, targets, weights) = make(), inputs()
    with pytest.raises(ValueError, match="shorter"):
        queries(words, features, targets[:1], weights)


def test_a_presence_score_weighs_what_was_gathered_against_the_seed() -> None:
    queries, (words, features, _, _) = make(presence=True), inputs()
    output = queries(words, features)
    scores = queries.presence_scores(output)
    assert scores.shape == (B, M)
    with torch.no_grad():
        queries.presence.bias += 0.25
    for b in range(B):
        for m in range(M):
            gathered = output.states[b, m] - output.seeds[b, m]
            by_hand = (gathered @ queries.presence.weight.double()) @ F.layer_norm(output.seeds[b, m], (WIDTH,))
            expected = (by_hand / math.sqrt(WIDTH)).item()
            assert scores[b, m].item() == pytest.approx(expected, abs=1e-5)
            assert queries.presence_scores(output)[b, m].item() == pytest.approx(expected + 0.25, abs=1e-5)


def test_a_presence_score_does_not_depend_on_other_words_or_on_maps() -> None:
    queries, (words, features, targets, weights) = make(presence=True), inputs()
    for weight in weights:
        weight[:, 1] = 0
    scores = queries.presence_scores(queries(words, features, targets, weights))
    torch.testing.assert_close(scores[:, 1:2], queries.presence_scores(queries(words[:, 1:2], features)))


def test_presence_learns_from_the_first_step_and_its_gradient_is_of_ordinary_size() -> None:
    """Nothing is gathered before training: a score that normalised it would start with a huge gradient."""
    queries, (words, features, _, _) = make(live_output=False, presence=True), inputs()
    scores = queries.presence_scores(queries(words, features))
    assert not scores.any()
    scores.sum().backward()
    moved = queries.blocks[-1].w_o.grad
    assert 0 < moved.norm() < 100


def test_presence_needs_its_readout() -> None:
    queries, (words, features, _, _) = make(), inputs()
    with pytest.raises(ConfigError, match="presence"):
        queries.presence_scores(queries(words, features))

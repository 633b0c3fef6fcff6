"""Interaction queries against a hand-written loop over images, words, heads and taps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.errors import ConfigError, UnknownNameError
from lfi_pipeline.students import QueryConfig
from lfi_pipeline.students.queries import InteractionQueries

B, M, E, WIDTH, HEADS = 2, 3, 5, 8, 2
GRIDS, WIDTHS = (9, 4), (6, 10)


def make(state: str = "persistent", *, live_output: bool = True) -> InteractionQueries:
    torch.manual_seed(1)
    queries = InteractionQueries(E, WIDTHS, QueryConfig(width=WIDTH, heads=HEADS, state=state)).double()
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


def by_hand(
    queries: InteractionQueries, words: Tensor, features: list[Tensor], state: str
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
def test_loss_and_maps_equal_a_loop_over_every_row(state: str) -> None:
    queries, (words, features, targets, weights) = make(state), inputs()
    expected = []
    by_tap = by_hand(queries, words, features, state)
    for rows, target, weight in zip(by_tap, targets, weights, strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for (b, m), heads in rows.items():
            kl = sum((target[b, m] * (target[b, m].log() - p.log())).sum() for p in heads) / HEADS
            total = total + weight[b, m] * kl
        expected.append(total / weight.sum())
    torch.testing.assert_close(queries(words, features, targets, weights), torch.stack(expected).mean())

    for rows, maps in zip(by_tap, queries.maps(words, features), strict=True):
        for (b, m), heads in rows.items():
            torch.testing.assert_close(maps[b, m], torch.stack(heads).mean(0))


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
            queries(words, features, targets, weights).backward()
            moved = queries.blocks[0].w_o.grad
            assert moved.abs().max() > 0
            with torch.no_grad():
                queries.blocks[0].w_o -= 5 * moved
        maps[state] = queries.maps(words, features)
    assert (maps["persistent"][1] - maps["reset"][1]).abs().max() > 1e-6


def test_reset_leaves_the_state_of_earlier_taps_without_gradient() -> None:
    queries, (words, features, targets, weights) = make("reset"), inputs()
    queries(words, features, targets, weights).backward()
    assert not any(block.w_v.grad is not None and block.w_v.grad.any() for block in queries.blocks)


def test_words_without_weight_change_nothing() -> None:
    queries, (words, features, targets, weights) = make(), inputs()
    for weight in weights:
        weight[:, -1] = 0
    full = queries(words, features, targets, weights)
    dropped = queries(words[:, :-1], features, [t[:, :-1] for t in targets], [w[:, :-1] for w in weights])
    torch.testing.assert_close(full, dropped)
    for target in targets:
        target[:, -1] = float("nan")
    torch.testing.assert_close(queries(words, features, targets, weights), full)


def test_without_any_word_the_loss_is_zero_and_passes_no_gradient() -> None:
    queries, (words, features, targets, _) = make(), inputs()
    loss = queries(words, features, targets, [torch.zeros(B, M, dtype=torch.float64) for _ in GRIDS])
    assert loss.item() == 0
    loss.backward()
    assert not any(p.grad.any() for p in queries.parameters() if p.grad is not None)


def test_loss_is_zero_where_the_targets_are_the_queries_own_maps() -> None:
    words, features, targets, weights = inputs()
    torch.manual_seed(0)
    one_head = InteractionQueries(E, WIDTHS, QueryConfig(width=WIDTH, heads=1)).double()
    own = [maps.detach() for maps in one_head.maps(words, features)]
    assert one_head(words, features, own, weights).item() == pytest.approx(0, abs=1e-9)
    assert one_head(words, features, targets, weights).item() > 1e-3


def test_weights_are_relative() -> None:
    queries, (words, features, targets, weights) = make(), inputs()
    doubled = [2 * weight for weight in weights]
    torch.testing.assert_close(queries(words, features, targets, weights), queries(words, features, targets, doubled))


def test_as_many_targets_as_taps_are_needed() -> None:
    queries, (words, features, targets, weights) = make(), inputs()
    with pytest.raises(ValueError, match="shorter"):
        queries(words, features, targets[:1], weights)


def test_unknown_state_lists_the_choices() -> None:
    with pytest.raises(UnknownNameError, match="persistent, reset"):
        QueryConfig(state="forgetful")


@pytest.mark.parametrize(("width", "heads"), [(10, 4), (0, 1), (8, 0), (8, -2)])
def test_width_and_heads_must_fit(width: int, heads: int) -> None:
    with pytest.raises(ConfigError, match=rf"{width} and {heads}"):
        QueryConfig(width=width, heads=heads)

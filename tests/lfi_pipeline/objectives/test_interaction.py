"""The interaction term against the formula of the design, one image, word, tap and head at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lfi_pipeline.students import TextQueries

Window = tuple[float, ...]


def decoded(codes: np.ndarray[Any, Any], scale: float) -> np.ndarray[Any, Any]:
    """A stored row as a distribution, from the codec's formula."""
    return scale * (codes.astype(np.float64) / 255) ** 2


def cut(density: np.ndarray[Any, Any], window: Window, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Mass of a map in each cell of a grid over the window, by overlaps of intervals."""
    gh, gw = density.shape
    left, top, right, bottom = window

    def overlaps(low: float, high: float, cells: int, parts: int) -> np.ndarray[Any, Any]:
        edges = np.linspace(low, high, parts + 1)
        return np.array(
            [
                [max(0.0, min(b, (i + 1) / cells) - max(a, i / cells)) * cells for i in range(cells)]
                for a, b in pairwise(edges.tolist())
            ]
        )

    return overlaps(top, bottom, gh, rows) @ density @ overlaps(left, right, gw, columns).T


@pytest.mark.parametrize("state", ["persistent", "reset"])
def test_it_is_the_formula(bench: Callable[..., Any], state: str) -> None:
    made = bench(objective="lfi", state=state)
    batch = made.batch(range(6))
    assert sum(batch.windows[:, 2] - batch.windows[:, 0] < 1) > 0  # some are cropped
    learner = made.learner
    told = made.told(batch)
    with torch.no_grad():
        found = made.losses(told)["lfi"]
        features = learner.student(batch.images[learner.student.size], with_taps=True)
        queries = learner.student.queries
        assert isinstance(queries, TextQueries)
        words = learner.vocabulary[batch.words.clamp_min(0)]
        seeds = query = queries.seed(words)
        taps = []
        for tap, block in enumerate(queries.blocks):
            before = seeds if state == "reset" else query
            attention = block.attention(before, features.taps[tap]).double()  # [B, H, M, N]
            query = block(before, features.taps[tap])[0]
            total = weights = 0.0
            for b in range(6):
                for m in range(batch.words.shape[1]):
                    if batch.words[b, m] < 0:
                        continue
                    layer = learner.layers[tap]
                    row = decoded(batch.maps[b, layer, m].numpy(), float(batch.scale[b, layer, m]))
                    mass = torch.from_numpy(cut(row, tuple(batch.windows[b].tolist()), *features.grids[tap]).ravel())
                    weight = float(mass.sum())
                    if weight == 0:
                        continue
                    kl = [F.kl_div(head.log(), mass / weight, reduction="sum") for head in attention[b, :, m]]
                    total += weight * float(sum(kl)) / len(kl)
                    weights += weight
            taps.append(total / weights)
    assert found.item() > 0.05
    assert found.item() == pytest.approx(sum(taps) / len(taps), rel=1e-4)


def test_head_means_are_the_maps_that_are_shown(bench: Callable[..., Any]) -> None:
    """With one head, what is compared is what `maps` returns."""
    made = bench(objective="lfi", query_heads=1, hflip=1.0)
    batch = made.batch(range(4))
    told = made.told(batch)
    supervision = told[1]
    learner = made.learner
    with torch.no_grad():
        found = made.losses(told)["lfi"]
        features = learner.student(batch.images[learner.student.size], with_taps=True)
        maps = learner.student.queries.maps(supervision.words, features.taps)
    per_tap = []
    for shown, target, weight in zip(maps, supervision.targets, supervision.weights, strict=True):
        kl = F.kl_div(shown.double().log(), target.double(), reduction="none").sum(-1)
        per_tap.append(float((kl * weight).sum() / weight.sum()))
    assert found.item() == pytest.approx(sum(per_tap) / len(per_tap), rel=1e-4)


@pytest.mark.parametrize("cuts", [(4, 4), (2, 6), (2, 2, 4)])
def test_pieces_add_up_to_the_whole(bench: Callable[..., Any], cuts: tuple[int, ...]) -> None:
    made = bench(objective="lfi+embedding+logits")
    context, _ = whole = made.told(made.batch(range(8)))
    with torch.no_grad():
        expected, sums, first = made.losses(whole), dict[str, torch.Tensor](), 0
        for size in cuts:
            piece = made.told(made.batch(range(first, first + size)), whole=8, mass=context.mass)
            for name, value in made.losses(piece).items():
                sums[name] = sums.get(name, torch.zeros(())) + value
            first += size
    assert set(sums) == set(expected) == {"task", "lfi", "embedding", "logits", "total"}
    for name, value in expected.items():
        torch.testing.assert_close(sums[name], value, atol=1e-5, rtol=1e-5, msg=name)


def test_it_is_a_scalar_not_below_zero_that_reaches_the_backbone(bench: Callable[..., Any]) -> None:
    made = bench(objective="lfi")
    for epoch in range(3):
        loss = made.losses(made.told(made.batch(range(6), epoch)))["lfi"]
        assert loss.shape == ()
        assert loss.item() >= 0
    loss.backward()
    student = made.learner.student
    assert isinstance(student.queries, TextQueries)
    first = student.backbone.patch_embed.proj.weight.grad
    assert first is not None
    assert first.abs().max() > 0
    assert student.head.weight.grad is None  # the head learns from the task alone


def test_it_is_zero_where_the_queries_look_where_the_teacher_looks(bench: Callable[..., Any]) -> None:
    made = bench(objective="lfi", query_heads=1, state="reset")
    batch = made.batch(range(4))
    context, supervision = made.told(batch)
    with torch.no_grad():
        features = made.learner.student(batch.images[made.learner.student.size], with_taps=True)
        queries = made.learner.student.queries
        seeds = queries.seed(supervision.words)
        own = [block.attention(seeds, x).mean(1) for block, x in zip(queries.blocks, features.taps, strict=True)]
        supervision.targets[:] = own
        found = made.losses((context, supervision))["lfi"]
    assert found.item() == pytest.approx(0, abs=1e-5)


def test_nothing_in_sight_is_no_loss(bench: Callable[..., Any]) -> None:
    made = bench(objective="lfi")
    context, supervision = made.told(made.batch(range(2)))
    for weight in supervision.weights:
        weight.zero_()
    context.mass.zero_()
    assert made.losses((context, supervision))["lfi"].item() == 0

"""IoU at the best threshold: against one cut after another, and on maps whose score is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.evaluation.grounding import THRESHOLDS, best_overlap, threshold_ious


def random_pairs(seed: int, size: tuple[int, int], count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(count, 3, 5, generator=generator) ** 2
    return maps, torch.rand(count, *size, generator=generator) < 0.3


def cut(maps: Tensor, masks: Tensor) -> Tensor:
    """One map and one threshold at a time, by the definition."""
    rows = []
    for each, mask in zip(maps, masks, strict=True):
        large = F.interpolate(each[None, None], mask.shape, mode="bilinear", align_corners=False)[0, 0]
        shares = large / large.max()
        rows.append([float((mask & (shares >= t)).sum() / (mask | (shares >= t)).sum()) for t in THRESHOLDS])
    return torch.tensor(rows)


@pytest.mark.parametrize("size", [(24, 40), (31, 17), (2, 2)])
def test_every_threshold_gives_the_iou_of_the_map_cut_there(size: tuple[int, int]) -> None:
    maps, masks = random_pairs(0, size)
    masks[:, 0, 0] = True
    found = threshold_ious(maps, masks)
    assert found.shape == (6, len(THRESHOLDS))
    torch.testing.assert_close(found, cut(maps, masks), rtol=0, atol=1e-6)


def test_a_pixel_at_the_threshold_is_in() -> None:
    """Shares 1 and 0.29 on pixels of their own: 0.29 * 100 rounds to less than 29."""
    maps = torch.tensor([[[1.0, 0.29]]])
    found = threshold_ious(maps, torch.tensor([[[True, True]]]))[0]
    assert found[:29].tolist() == [1.0] * 29
    assert found[29:].tolist() == [0.5] * 70


def test_one_threshold_serves_all_maps() -> None:
    """Each map alone would score 1, the first at 0.5 and below, the second above 0.5: together they cannot."""
    maps = [torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[1.0, 0.5, 0.0]])]
    masks = [torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]])]
    assert best_overlap(maps[:1], masks[:1]).iou == 1  # type: ignore[union-attr]
    assert best_overlap(maps[1:], masks[1:]).iou == 1  # type: ignore[union-attr]
    together = best_overlap(maps, masks)
    assert together is not None
    assert (together.iou, together.threshold, together.count) == (0.75, 0.01, 2)
    assert best_overlap(maps * 2 + maps[1:], masks * 2 + masks[1:]).threshold == 0.51  # type: ignore[union-attr]


def test_the_mean_is_over_maps_of_all_sizes() -> None:
    first, second = random_pairs(1, (24, 40)), random_pairs(2, (16, 9), count=3)
    found = best_overlap([*first[0], *second[0]], [*first[1], *second[1]])
    curve = torch.cat([cut(*first), cut(*second)]).mean(0)
    assert found is not None
    assert found.iou == pytest.approx(float(curve.max()), abs=1e-6)
    assert curve[THRESHOLDS.index(found.threshold)] == pytest.approx(float(curve.max()), abs=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 40.0])
def test_only_the_shape_of_a_map_matters(factor: float) -> None:
    maps, masks = random_pairs(3, (24, 40))
    torch.testing.assert_close(threshold_ious(factor * maps, masks), threshold_ious(maps, masks))


def test_a_uniform_map_is_the_whole_image() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    assert threshold_ious(torch.full((1, 2, 2), 0.25), mask).unique().tolist() == [0.5]


def test_a_map_of_zeros_covers_nothing() -> None:
    masks = torch.ones(2, 8, 8, dtype=torch.bool)
    found = threshold_ious(torch.stack([torch.zeros(2, 2), torch.ones(2, 2)]), masks)
    assert found.unique(dim=1).tolist() == [[0.0], [1.0]]


def test_nothing_to_score_is_none() -> None:
    assert best_overlap([], []) is None

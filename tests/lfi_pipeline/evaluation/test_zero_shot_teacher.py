"""The teacher's own score: accuracy or mAP of its logits against the labels that the cache holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfi_pipeline.evaluation.zero_shot import teacher_zero_shot
from lfi_pipeline.targets import TargetStore, ZeroShot
from lfi_pipeline.training.validate import mean_average_precision


class Cache:
    """As much of a `TargetStore` as is read: classes are the axes, an image embedding is given for each sample."""

    def __init__(self, embeddings: list[list[float]], labels: list[tuple[int, ...]], usable: list[int]) -> None:
        self.index = type("Index", (), {"labels": labels})()
        self.usable = np.array(usable, dtype=np.int64)
        self._embeddings = np.array(embeddings, dtype=np.float16)
        self.zero_shot: ZeroShot | None = ZeroShot(
            names=("a", "b", "c"), templates=("{}",), logit_scale=10.0, embeddings=np.eye(3, dtype=np.float32)
        )

    def read_many(self, positions: Any) -> Any:
        return type("Targets", (), {"image_embedding": self._embeddings[positions]})()


EMBEDDINGS = [[1.0, 0.2, 0.0], [0.9, 1.0, 0.0], [0.0, 1.0, 0.3], [1.0, 0.0, 0.0]]


def test_one_label_an_image_is_accuracy() -> None:
    cache: Any = Cache(EMBEDDINGS, [(0,), (1,), (2,), (2,)], [0, 1, 2])  # the last is quarantined
    score = teacher_zero_shot(cache)
    assert score is not None
    assert (score.metric, score.images) == ("accuracy", 3)
    assert score.value == pytest.approx(2 / 3)
    assert score.chance == pytest.approx(1 / 3)
    assert not score.near_chance
    assert replace(score, value=0.6).near_chance
    assert not replace(score, value=0.8, chance=0.5).near_chance  # twice a guess is more than can be asked
    assert replace(score, value=0.7, chance=0.5).near_chance


def test_several_labels_or_none_are_map_over_classes_that_occur() -> None:
    cache: Any = Cache(EMBEDDINGS, [(0, 1), (1,), (), (0,)], [0, 1, 2, 3])
    score = teacher_zero_shot(cache)
    assert score is not None
    assert (score.metric, score.images) == ("mAP", 4)
    # class 0 ranks images 3, 0, 1, 2 and has the first two; class 1 ranks 2, 1, 0, 3 and has the second and third
    assert score.value == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert score.chance == pytest.approx((2 / 4 + 2 / 4) / 2)


def test_the_level_of_an_image_does_not_count() -> None:
    """Class 0 has the larger cosine with the image that lacks it, but the smaller share of that image's softmax."""
    cache: Any = Cache([[1.0, 0.9, 0.9], [0.9, 1.0, 0.0]], [(0,), (1, 2)], [0, 1])
    score = teacher_zero_shot(cache)
    assert score is not None
    assert score.value == pytest.approx((1 + 1 + 1 / 2) / 3)


def test_no_labels_or_no_classes_is_no_score() -> None:
    cache: Any = Cache(EMBEDDINGS, [(), (), (), ()], [0, 1, 2, 3])
    assert teacher_zero_shot(cache) is None
    cache = Cache(EMBEDDINGS, [(0,)] * 4, [0, 1, 2, 3])
    cache.zero_shot = None
    assert teacher_zero_shot(cache) is None


def test_a_large_cache_is_scored_on_a_part_spread_over_it() -> None:
    cache: Any = Cache([EMBEDDINGS[0]] * 50 + [EMBEDDINGS[2]] * 50, [(0,)] * 100, list(range(100)))
    score = teacher_zero_shot(cache, most=10)
    assert score is not None
    assert score.images == 10
    assert score.value == pytest.approx(0.5)


def test_of_a_real_cache(tiny_targets: Path) -> None:
    store = TargetStore.open(tiny_targets)
    score = teacher_zero_shot(store)
    assert score is not None
    assert store.zero_shot is not None
    assert (score.metric, score.images) == ("mAP", len(store))
    embedding = torch.from_numpy(store.read_many(store.usable).image_embedding).float()
    cosines = torch.nn.functional.normalize(embedding, dim=1) @ torch.from_numpy(store.zero_shot.embeddings).T
    shares = (store.zero_shot.logit_scale * cosines).softmax(1)
    truth = torch.zeros(shares.shape, dtype=torch.long)
    for row, labels in enumerate(store.index.labels):
        truth[row, list(labels)] = 1
    assert score.value == pytest.approx(mean_average_precision(shares, truth), abs=1e-2)

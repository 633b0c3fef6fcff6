"""How good the teacher itself is at the data set's classes, zero-shot: what a student of it may hope for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lfi_pipeline.targets import TargetStore, ZeroShot, teacher_logits
from lfi_pipeline.targets.inspection import CHUNK, evenly_spaced
from lfi_pipeline.training.validate import mean_average_precision

LOOKED_AT = 16384
"""Samples that are scored at most, evenly spaced: seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotScore:
    """Of the teacher, on images of the cache.

    Attributes:
        metric: `accuracy` (top 1) where every image has one label, else `mAP` over the classes that occur, of the
            softmax over classes: logits of different images cannot be compared (see `training.logit_distillation`).
        value: in [0, 1].
        images: that it is of.
    """

    metric: Literal["accuracy", "mAP"]
    value: float
    images: int


def teacher_zero_shot(store: TargetStore, most: int = LOOKED_AT) -> ZeroShotScore | None:
    """Score the teacher's zero-shot logits against the labels, on at most `most` samples that are not quarantined.

    Returns:
        None where the cache holds no class embeddings, or the samples have no labels.
    """
    positions = evenly_spaced(store.usable, most)
    labels = [store.index.labels[position] for position in positions.tolist()]
    zero_shot = store.zero_shot
    if zero_shot is None or not any(labels):
        return None
    shares = teacher_shares(store, zero_shot, positions)
    truth = label_matrix(labels, shares.shape[1])
    if all(len(each) == 1 for each in labels):
        hits = shares.argmax(1) == truth.argmax(1)
        return ZeroShotScore(metric="accuracy", value=float(hits.float().mean()), images=len(labels))
    return ZeroShotScore(metric="mAP", value=mean_average_precision(shares, truth), images=len(labels))


def teacher_shares(store: TargetStore, zero_shot: ZeroShot, positions: npt.NDArray[np.int64]) -> Tensor:
    """Return the softmax over classes of the teacher's zero-shot logits, fp32 [S, C], from stored embeddings."""
    parts = []
    for first in range(0, len(positions), CHUNK):
        embedding = store.read_many(positions[first : first + CHUNK]).image_embedding
        parts.append(teacher_logits(torch.from_numpy(embedding), zero_shot))
    return torch.cat(parts).softmax(1)


def label_matrix(labels: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Return fp32 [S, classes], 1 where an image has the label."""
    truth = torch.zeros(len(labels), classes)
    for row, each in enumerate(labels):
        truth[row, list(each)] = 1
    return truth

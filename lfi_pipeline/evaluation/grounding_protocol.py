"""Protocol `grounding`: do the student's interaction maps look at the object that the word names, and the teacher's?

The pointing game and the mass in the mask, as `evaluation.grounding` defines them with their source, of every word that
names a class with a mask, at each tap of the student and for the teacher's cached maps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lfi_pipeline.errors import ConfigError
from lfi_pipeline.evaluation.config import EvaluationConfig
from lfi_pipeline.evaluation.gallery import write_gallery
from lfi_pipeline.evaluation.grounding import (
    GroundedWord,
    grounded_words,
    peaks_in_mask,
    score,
    teacher_grounding,
)
from lfi_pipeline.evaluation.loading import load, validation_split
from lfi_pipeline.evaluation.results import ProtocolResult
from lfi_pipeline.evaluation.student_maps import student_maps
from lfi_pipeline.students import LearnedQueries, Student
from lfi_pipeline.targets import TargetStore


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundingConfig:
    """Options of the protocol.

    Attributes:
        targets: a cache of the validation split, made by the teacher of the training cache: it knows the words of the
            images and where the teacher looks.
        gallery: samples to keep in the run with their maps, for the report; 0: none.
    """

    targets: Path
    gallery: int = 12

    def __post_init__(self) -> None:
        if self.gallery < 0:
            raise ConfigError(f"gallery must be 0 or more, got {self.gallery}.")


def grounding(run: Path, common: EvaluationConfig, config: GroundingConfig) -> ProtocolResult:
    """Score the maps of `run` and of its teacher, and write the gallery into the run.

    Scores are those of the last tap; `details` holds every tap, and `area`, the share of the image that masks cover:
    what a random peak scores. A student without queries has the teacher's scores alone.

    Raises:
        ConfigError: the targets are of another teacher or data set than the run's.
        DatasetError: the targets are of another split than the run is scored on, or nothing in it has a mask.
    """
    began = time.monotonic()
    loaded = load(run, common)
    dataset = validation_split(loaded)
    store = TargetStore.open(config.targets, data_root=loaded.store.source_root)
    _require_same_teacher(loaded.store, store)
    words = grounded_words(store, dataset)
    teacher = teacher_grounding(store, words)[-1]
    maps: dict[int, list[Tensor]] = {}
    if loaded.student.queries is not None:
        positions = sorted({word.position for word in words})
        maps = dict(student_maps(loaded.student, store, dataset, positions))
    taps = _taps(loaded.student, maps, words)
    if config.gallery:
        write_gallery(run, store, dataset, words, maps, _gallery_positions(words, maps, config.gallery))
    last = taps[-1] if taps else {}
    return ProtocolResult(
        protocol="grounding",
        settings={
            "dataset": dataset.name,
            "split": dataset.split,
            "weights": common.weights,
            "targets": store.spec.fingerprint,
        },
        scores={
            **{name: last[name] for name in ("pointing", "mass_in_mask") if last},
            "teacher_pointing": teacher.pointing,
            "teacher_mass_in_mask": teacher.mass_in_mask,
        },
        details={
            "taps": taps,
            "teacher": asdict(teacher),
            "area": teacher.area,
            "slots_matched_by_teacher": isinstance(loaded.student.queries, LearnedQueries),
        },
        seconds=time.monotonic() - began,
    )


def _taps(
    student: Student, maps: Mapping[int, Sequence[Tensor]], words: Sequence[GroundedWord]
) -> list[dict[str, Any]]:
    """Score each tap of a student with queries."""
    if not maps:
        return []
    masks = [word.mask for word in words]
    return [
        {"index": tap.index, "depth": tap.depth}
        | asdict(score([maps[word.position][number][word.row] for word in words], masks))
        for number, tap in enumerate(student.taps)
    ]


def _gallery_positions(words: Sequence[GroundedWord], maps_of: Mapping[int, Sequence[Tensor]], count: int) -> list[int]:
    """Choose samples evenly spaced from the student's worst to its best, so that failures are shown as well."""
    hits: dict[int, list[bool]] = {}
    for word in words:
        maps = maps_of.get(word.position)
        hit = bool(peaks_in_mask(maps[-1][word.row][None], word.mask[None])) if maps else True
        hits.setdefault(word.position, []).append(hit)
    ranked = sorted(hits, key=lambda position: (float(np.mean(hits[position])), position))
    spread = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[i] for i in spread]


def _require_same_teacher(trained: TargetStore, given: TargetStore) -> None:
    for name, ours, theirs in (
        ("teacher", trained.spec.teacher, given.spec.teacher),
        ("data set", trained.spec.dataset.name, given.spec.dataset.name),
        ("classes", trained.spec.dataset.classes, given.spec.dataset.classes),
    ):
        if ours != theirs:
            raise ConfigError(
                f"The validation targets must have the {name} of the training targets; {given.path} has {theirs}, "
                f"{trained.path} has {ours}."
            )

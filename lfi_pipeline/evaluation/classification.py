"""Protocol `classification`: how well the student tells classes, seen and held-out domains apart.

Three readings of one frozen student: its own head; k nearest neighbours (`evaluation.probes`) and a linear probe
(also there, both with their sources) on its pooled features, fitted on the run's training split without
the held-out domains, on whole images without augmentation. Each is scored alike: top-1 accuracy where every image has
one label (the head: top-5 as well), and the mean over classes of average precision (Everingham et al., "The Pascal
Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, over all recall levels).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.core.runtime import progress_bar, tell
from lfi_pipeline.data import Dataset
from lfi_pipeline.evaluation.config import ClassificationConfig, EvaluationConfig
from lfi_pipeline.evaluation.metrics import HEAD_SCORES, TEACHER, TEACHER_SCORES
from lfi_pipeline.evaluation.probes import choose_probe, knn_scores
from lfi_pipeline.evaluation.protocols import ProtocolResult, load, read_split, scored_split, settings_of
from lfi_pipeline.evaluation.zero_shot import label_matrix, teacher_shares
from lfi_pipeline.students import Student
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.verify import evenly_spaced
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.learner import LoadedRun
from lfi_pipeline.training.validate import (
    CLASSIFICATION,
    MULTI_LABEL,
    NONE,
    Predictions,
    mean_average_precision,
    probabilities,
    score_domains,
    top_k_accuracy,
)

_BATCH = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenFeatures:
    """Features and logits of a frozen student for S images, on the CPU.

    Attributes:
        pooled: fp32 [S, D].
        logits: fp32 [S, C]; None for a student without a head.
        labels: bool [S, C].
        read: bool [S]; False where an image could not be read, and its row does not count.
    """

    pooled: Tensor
    logits: Tensor | None
    labels: Tensor
    read: Tensor

    def readable(self) -> tuple[Tensor, Tensor]:
        """Return pooled features [R, D] and labels [R, C] of the images that could be read."""
        return self.pooled[self.read], self.labels[self.read]


@torch.no_grad()
def frozen_features(
    student: Student, dataset: Dataset, positions: Sequence[int] | None = None, *, workers: int = 0
) -> FrozenFeatures:
    """Run a student on whole, resized images.

    Args:
        student: in eval mode, on the device to use.
        dataset: the split.
        positions: which of its samples, in this order; None takes all.
        workers: loader processes.

    Raises:
        ValueError: `positions` is empty.
    """
    chosen = range(len(dataset)) if positions is None else positions
    if not chosen:
        raise ValueError("There must be an image to look at.")
    images = Subset(PlainImages(dataset, [student.size]), chosen)
    device = next(student.parameters()).device
    parts: list[tuple[Tensor, Tensor | None, Tensor, Tensor]] = []
    with progress_bar(total=len(chosen), desc=f"features of {dataset.split}", unit="image", leave=False) as bar:
        for views, labels, read in DataLoader(images, batch_size=_BATCH, num_workers=workers):
            features = student(views[student.size].to(device))
            logits = features.logits.float().cpu() if features.logits is not None else None
            parts.append((features.pooled.float().cpu(), logits, labels.bool(), read))
            bar.update(len(labels))
    pooled, logits_of, labels_of, read_of = zip(*parts, strict=True)
    return FrozenFeatures(
        pooled=torch.cat(pooled),
        logits=torch.cat(logits_of) if student.classifies else None,
        labels=torch.cat(labels_of),
        read=torch.cat(read_of),
    )


def probe_scores(
    loaded: LoadedRun,
    dataset: Dataset,
    validation: FrozenFeatures,
    task: str,
    common: EvaluationConfig,
    config: ClassificationConfig,
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Return the scores `knn_*` and `linear_*` of a run, and the details of how they came about.

    Args:
        loaded: the run.
        dataset: the split that is scored.
        validation: features of that split.
        task: `classification` or `multi-label`.
        common: of the evaluation.
        config: of the protocol.

    Raises:
        ConfigError: too few training images, or ones whose labels do not fit the task.
        DatasetError: the training split is not there, or has other classes.
    """
    device = next(loaded.student.parameters()).device
    training = _training_features(loaded, common, config.probe_limit)
    features, labels = (each.to(device) for each in training.readable())
    if not labels.any() or (task == CLASSIFICATION and not bool((labels.sum(1) == 1).all())):
        required = "one label for every training image" if task == CLASSIFICATION else "training images with labels"
        raise ConfigError(f"The probes need {required}; the run's data set does not have them. Give `probes=False`.")
    queries = validation.pooled.to(device)
    neighbours = knn_scores(features, labels, queries, k=config.knn_k, temperature=config.knn_temperature)
    chosen = choose_probe(features, labels, task, lambda scores, truth: _metric(scores, truth.float(), task))
    seen = frozenset(loaded.record["seen_domains"])
    domains = [sample.domain for sample in dataset.samples]
    details: dict[str, Any] = {
        "training_images": len(features),
        "validation_images": int(validation.read.sum()),
        "feature_width": features.shape[1],
        "l2": chosen.l2,
        "l2_grid": [list(pair) for pair in chosen.grid.items()],
        "held_back": chosen.held_back,
    }
    scores: dict[str, float | None] = {}
    for prefix, class_scores in (("knn", neighbours), ("linear", chosen.probe.scores(queries))):
        predictions = Predictions(
            class_scores.cpu() * validation.read[:, None], validation.labels.float(), validation.read
        )
        scored = score_domains(predictions, task, domains, seen)
        names = [f"{measure}_{part}" for measure in ("top1", "map") for part in ("seen", "heldout")]
        scores |= {f"{prefix}_{name}": scored[name] for name in names if name in scored}  # type: ignore[misc]
        details[f"{prefix}_map_per_domain"] = scored["map_per_domain"]
    return scores, details


def _training_features(loaded: LoadedRun, common: EvaluationConfig, limit: int | None) -> FrozenFeatures:
    dataset = read_split(loaded, loaded.store.spec.dataset.split)
    seen = frozenset(loaded.record["seen_domains"])
    positions = np.array([i for i, sample in enumerate(dataset.samples) if sample.domain in seen], dtype=np.int64)
    if not len(positions):
        raise DatasetError(
            f"Split {dataset.split} of {dataset.root} must hold images of the domains that the run was trained on "
            f"({', '.join(sorted(seen))}); it has none."
        )
    chosen = evenly_spaced(positions, limit or len(positions))
    return frozen_features(loaded.student, dataset, chosen.tolist(), workers=common.workers)


def _metric(scores: Tensor, labels: Tensor, task: str) -> float:
    """Return top-1 accuracy or mAP of scores and labels [R, C], as the task demands; 0 where no image has a label."""
    if task == CLASSIFICATION:
        return top_k_accuracy(scores, labels, 1) or 0.0
    return mean_average_precision(scores, labels) or 0.0


def classification(run: Path, common: EvaluationConfig, config: ClassificationConfig) -> ProtocolResult:
    """Score `run` on its validation split or the split that is named; one trained without a task has no head's scores.

    With the split's cache (`targets`) the teacher's zero-shot answers are scored too, from stored embeddings.

    Raises:
        ConfigError: the images have no labels, or there are too few training images for the probes.
    """
    began = time.monotonic()
    of_probes = {name: value for name, value in asdict(config).items() if name not in ("split", "targets")}
    loaded = load(run, common)
    dataset = scored_split(loaded, config.split)
    task = _task(loaded, dataset)
    validation = frozen_features(loaded.student, dataset, workers=common.workers)
    scores, details = _head_scores(loaded, dataset, validation) if loaded.task != NONE else ({}, {})
    if config.probes:
        probe_results, details["probes"] = probe_scores(loaded, dataset, validation, task, common, config)
        scores |= probe_results
    if config.targets is not None:
        teacher = _teacher_scores(TargetStore.open(config.targets), dataset, task, loaded.record["seen_domains"])
        scores |= {name: value for name, value in teacher.items() if name in TEACHER_SCORES}
        details |= {name: value for name, value in teacher.items() if name not in TEACHER_SCORES}
    return ProtocolResult(
        protocol="classification",
        settings=settings_of(dataset, common, **(of_probes if config.probes else {"probes": False})),
        scores=scores,
        details=details,
        seconds=time.monotonic() - began,
    )


def _teacher_scores(store: TargetStore, dataset: Dataset, task: str, seen: Sequence[str]) -> dict[str, Any]:
    """Return the zero-shot scores of the teacher on the images of its cache, none where the cache is of other images."""
    spec, zero_shot = store.spec.dataset, store.zero_shot
    if (spec.name, spec.split, spec.classes) != (dataset.name, dataset.split, dataset.classes) or zero_shot is None:
        tell(f"The teacher's own answers are left out: its cache has none of {dataset.name}, split {dataset.split}.")
        return {}
    place = {store.index.keys[position]: position for position in store.usable.tolist()}
    rows = [row for row, sample in enumerate(dataset.samples) if sample.key in place]
    chosen = [dataset.samples[row] for row in rows]
    shares = teacher_shares(store, zero_shot, np.array([place[sample.key] for sample in chosen], dtype=np.int64))
    labels = label_matrix([sample.labels for sample in chosen], len(dataset.classes))
    predictions = Predictions(shares, labels, torch.ones(len(rows), dtype=torch.bool))
    scored = score_domains(predictions, task, [sample.domain for sample in chosen], frozenset(seen))
    return {f"{TEACHER}{name}": value for name, value in scored.items() if name != "unreadable"}


def _task(loaded: LoadedRun, dataset: Dataset) -> str:
    """Return the task of the run; for a run without one, the task that the labels define."""
    counts = {len(sample.labels) for sample in dataset.samples}
    if counts <= {0}:
        raise ConfigError(
            f"Protocol classification needs labels; split {dataset.split} of {dataset.root} has none. Name another "
            "`protocol`."
        )
    if loaded.task != NONE:
        return loaded.task
    return CLASSIFICATION if counts == {1} else MULTI_LABEL


def _head_scores(
    loaded: LoadedRun, dataset: Dataset, features: FrozenFeatures
) -> tuple[dict[str, Any], dict[str, Any]]:
    assert features.logits is not None  # a run with a task has a head
    predictions = Predictions(
        probabilities(loaded.task, features.logits) * features.read[:, None], features.labels.float(), features.read
    )
    domains = [sample.domain for sample in dataset.samples]
    scored = score_domains(predictions, loaded.task, domains, frozenset(loaded.record["seen_domains"]))
    scores = {name: value for name, value in scored.items() if name in HEAD_SCORES}
    return scores, {name: value for name, value in scored.items() if name not in HEAD_SCORES}

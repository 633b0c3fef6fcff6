"""Protocol `classification`: how well the student tells classes, seen and held-out domains apart.

Three readings of one frozen student: its own head; k nearest neighbours (`evaluation.knn`) and a linear probe
(`evaluation.linear_probe`, both with their sources) on its pooled features, fitted on the run's training split without
the held-out domains, on whole images without augmentation. Each is scored alike: top-1 accuracy where every image has
one label (the head: top-5 as well), and the mean over classes of average precision (Everingham et al., "The Pascal
Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, over all recall levels).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.data import Dataset
from lfi_pipeline.errors import ConfigError
from lfi_pipeline.evaluation import knn
from lfi_pipeline.evaluation.config import EvaluationConfig
from lfi_pipeline.evaluation.features import FrozenFeatures, frozen_features
from lfi_pipeline.evaluation.loading import load, validation_split
from lfi_pipeline.evaluation.probes import probe_scores
from lfi_pipeline.evaluation.results import ProtocolResult
from lfi_pipeline.score_names import HEAD_SCORES
from lfi_pipeline.training.loading import LoadedRun
from lfi_pipeline.training.tasks import CLASSIFICATION, MULTI_LABEL, NONE, probabilities
from lfi_pipeline.training.validate import Predictions, score_domains


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationConfig:
    """Options of the protocol.

    Attributes:
        probes: score k-NN and the linear probe too, which takes a pass over the training images.
        probe_limit: training images for the probes at most, evenly spaced; None takes all.
        knn_k: neighbours that vote.
        knn_temperature: of their votes.
    """

    probes: bool = True
    probe_limit: int | None = None
    knn_k: int = knn.K
    knn_temperature: float = knn.TEMPERATURE

    def __post_init__(self) -> None:
        for name, value in (("probe_limit", self.probe_limit), ("knn_k", self.knn_k)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, got {value}.")
        if not self.knn_temperature > 0:
            raise ConfigError(f"knn_temperature must be positive, got {self.knn_temperature}.")


def classification(run: Path, common: EvaluationConfig, config: ClassificationConfig) -> ProtocolResult:
    """Score `run` on its validation split; a run that was trained without a task has no head's scores.

    Raises:
        ConfigError: the images have no labels, or there are too few training images for the probes.
    """
    began = time.monotonic()
    loaded = load(run, common)
    dataset = validation_split(loaded)
    task = _task(loaded, dataset)
    validation = frozen_features(loaded.student, dataset, workers=common.workers)
    scores, details = _head_scores(loaded, dataset, validation) if loaded.task != NONE else ({}, {})
    if config.probes:
        found, details["probes"] = probe_scores(loaded, dataset, validation, task, common, config)
        scores |= found
    return ProtocolResult(
        protocol="classification",
        settings={
            "dataset": dataset.name,
            "split": dataset.split,
            "weights": common.weights,
            **(asdict(config) if config.probes else {"probes": False}),
        },
        scores=scores,
        details=details,
        seconds=time.monotonic() - began,
    )


def _task(loaded: LoadedRun, dataset: Dataset) -> str:
    """The task that the run was trained on, or what the labels are where it was trained without."""
    counts = {len(sample.labels) for sample in dataset.samples}
    if counts <= {0}:
        raise ConfigError(
            f"Protocol classification needs labels; split {dataset.split} of {dataset.root} has none. Name another "
            "--protocol."
        )
    if loaded.task != NONE:
        return loaded.task
    return CLASSIFICATION if counts == {1} else MULTI_LABEL


def _head_scores(loaded: LoadedRun, dataset: Dataset, found: FrozenFeatures) -> tuple[dict[str, Any], dict[str, Any]]:
    assert found.logits is not None  # a run with a task has a head
    predictions = Predictions(
        probabilities(loaded.task, found.logits) * found.read[:, None], found.labels.float(), found.read
    )
    domains = [sample.domain for sample in dataset.samples]
    scored = score_domains(predictions, loaded.task, domains, frozenset(loaded.record["seen_domains"]))
    scores = {name: value for name, value in scored.items() if name in HEAD_SCORES}
    return scores, {name: value for name, value in scored.items() if name not in HEAD_SCORES}

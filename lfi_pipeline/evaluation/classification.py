"""Protocol `classification`: how well the student tells classes, seen and held-out domains apart.

The scores of the student's own head: top-1 and top-5 accuracy where every image has one label, else the mean over
classes of average precision (Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010,
section 4.2, over all recall levels).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.data import Dataset
from lfi_pipeline.errors import ConfigError
from lfi_pipeline.evaluation.config import EvaluationConfig
from lfi_pipeline.evaluation.loading import load, validation_split
from lfi_pipeline.evaluation.results import ProtocolResult
from lfi_pipeline.score_names import HEAD_SCORES
from lfi_pipeline.training.loading import LoadedRun
from lfi_pipeline.training.tasks import NONE
from lfi_pipeline.training.validate import predict, score_domains


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationConfig:
    """Options of the protocol."""


def classification(run: Path, common: EvaluationConfig, config: ClassificationConfig) -> ProtocolResult:
    """Score `run` on its validation split; a run that was trained without a task has no head's scores.

    Raises:
        ConfigError: the images have no labels.
    """
    began = time.monotonic()
    loaded = load(run, common)
    dataset = validation_split(loaded)
    if not any(sample.labels for sample in dataset.samples):
        raise ConfigError(
            f"Protocol classification needs labels; split {dataset.split} of {dataset.root} has none. Name another "
            "--protocol."
        )
    found = _head_scores(loaded, dataset, common) if loaded.task != NONE else {}
    return ProtocolResult(
        protocol="classification",
        settings={"dataset": dataset.name, "split": dataset.split, "weights": common.weights},
        scores={name: found[name] for name in HEAD_SCORES if name in found},
        details={name: value for name, value in found.items() if name not in HEAD_SCORES},
        seconds=time.monotonic() - began,
    )


def _head_scores(loaded: LoadedRun, dataset: Dataset, common: EvaluationConfig) -> dict[str, Any]:
    device = next(loaded.student.parameters()).device
    (predictions,) = predict([loaded.student], dataset, loaded.task, device, workers=common.workers)
    domains = [sample.domain for sample in dataset.samples]
    return dict(score_domains(predictions, loaded.task, domains, frozenset(loaded.record["seen_domains"])))

"""k-NN and linear probe of one run: which training images they are fitted on, and how they are scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.errors import ConfigError, DatasetError
from lfi_pipeline.evaluation.config import EvaluationConfig
from lfi_pipeline.evaluation.features import FrozenFeatures, frozen_features
from lfi_pipeline.evaluation.knn import knn_scores
from lfi_pipeline.evaluation.linear_probe import choose_probe
from lfi_pipeline.targets.inspection import evenly_spaced
from lfi_pipeline.training.loading import LoadedRun
from lfi_pipeline.training.tasks import CLASSIFICATION, top_k_accuracy
from lfi_pipeline.training.validate import Predictions, mean_average_precision, score_domains

if TYPE_CHECKING:
    from lfi_pipeline.evaluation.classification import ClassificationConfig


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
        dataset: its validation split.
        validation: what the student makes of that split.
        task: `classification` or `multi-label`.
        common: of the evaluation.
        config: of the protocol.

    Raises:
        ConfigError: too few training images, or ones whose labels do not fit the task.
        DatasetError: the training split is not there, or has other classes.
    """
    device = next(loaded.student.parameters()).device
    training = _training_features(loaded, dataset, common, config.probe_limit)
    features, labels = (each.to(device) for each in training.readable())
    if not labels.any() or (task == CLASSIFICATION and not bool((labels.sum(1) == 1).all())):
        asked = "one label for every training image" if task == CLASSIFICATION else "training images with labels"
        raise ConfigError(f"The probes need {asked}; the run's data set does not have them. Give --no-probes.")
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
    for prefix, found in (("knn", neighbours), ("linear", chosen.probe.scores(queries))):
        predictions = Predictions(found.cpu() * validation.read[:, None], validation.labels.float(), validation.read)
        scored = score_domains(predictions, task, domains, seen)
        names = [f"{measure}_{part}" for measure in ("top1", "map") for part in ("seen", "heldout")]
        scores |= {f"{prefix}_{name}": scored[name] for name in names if name in scored}  # type: ignore[misc]
        details[f"{prefix}_map_per_domain"] = scored["map_per_domain"]
    return scores, details


def _training_features(
    loaded: LoadedRun, validation: Dataset, common: EvaluationConfig, limit: int | None
) -> FrozenFeatures:
    spec = loaded.store.spec.dataset
    dataset = read_dataset(spec.name, loaded.store.source_root, spec.split)
    if dataset.classes != validation.classes:
        raise DatasetError(
            f"Splits {dataset.split} and {validation.split} of {dataset.root} must have the same classes for the "
            "probes; they differ. Give --no-probes."
        )
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
    """What the validation split is scored by; 0 where no image held back has a label."""
    if task == CLASSIFICATION:
        return top_k_accuracy(scores, labels, 1)
    return mean_average_precision(scores, labels) if bool(labels.any()) else 0.0

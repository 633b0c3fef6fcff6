"""Protocol `cross-domain`: train on all domains but one, score on the one left out.

DomainBed (Gulrajani & Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, section 4): one run for every
domain left out; a model is chosen by its score on the training domains (weights `best`), never on the one left out.
DomainBed scores the four fifths of the left-out domain that its own random split gives; here every image of it counts,
of all splits, since none was trained on. `report.views` makes the table over runs and seeds.

The runs are a sweep over `hold_out`, each value a list, on a cache whose training split has all domains:

    out = "runs/left-out"
    [base]
    targets = "shards"
    [grid]
    objective = ["none", "lfi"]
    hold_out = [["photo"], ["art_painting"], ["cartoon"], ["sketch"]]
    seed = [0, 1, 2]
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.data import Dataset, Sample, load_manifest, read_dataset
from lfi_pipeline.data.dataset import relabelled
from lfi_pipeline.evaluation.config import CrossDomainConfig, EvaluationConfig
from lfi_pipeline.evaluation.protocols import ProtocolResult, load
from lfi_pipeline.training.learner import LoadedRun
from lfi_pipeline.training.validate import (
    CLASSIFICATION,
    NONE,
    Predictions,
    mean_average_precision,
    predict,
    top_k_accuracy,
)

WHOLE = "all"
"""The split that holds every image, in data sets that have one (PACS, VLCS, your own folders)."""


def cross_domain(run: Path, common: EvaluationConfig, config: CrossDomainConfig) -> ProtocolResult:
    """Score `run` on every image of the domains it left out: those of `hold_out`, else those it never saw.

    Scores are top-1 accuracy where every image has one label, and mAP. Details: images and scores of each domain, the
    domains that were trained on, and how many images could not be read (they do not count).

    Raises:
        ConfigError: the run has no task, or has seen every domain.
        UnknownNameError: the data set has no such split.
        DatasetError: a split is not there, or names other classes than the run was trained on.
    """
    began = time.monotonic()
    loaded = load(run, common)
    if loaded.task == NONE:
        raise ConfigError(f"{run} was trained without a task, so it has no class scores. Train with a task.")
    dataset, splits = _every_image(loaded, config.splits)
    trained = frozenset(loaded.record["seen_domains"])
    left_out = _left_out(loaded, dataset, trained)
    chosen = [sample for sample in dataset.samples if sample.domain in left_out]
    dataset = replace(dataset, samples=chosen, instances={})
    device = next(loaded.student.parameters()).device
    (predictions,) = predict([loaded.student], dataset, loaded.task, device, workers=common.workers)
    return ProtocolResult(
        protocol="cross-domain",
        settings={
            "dataset": dataset.name,
            "split": "+".join(splits),
            "weights": common.weights,
            "domains": sorted(left_out),
        },
        scores=_scores(predictions, loaded.task, predictions.read),
        details={
            "trained_on": sorted(trained),
            "domains": {
                domain: _of_domain(predictions, loaded.task, [sample.domain == domain for sample in chosen])
                for domain in sorted(left_out)
            },
            "unreadable": int((~predictions.read).sum()),
        },
        seconds=time.monotonic() - began,
    )


def _every_image(loaded: LoadedRun, requested: Sequence[str]) -> tuple[Dataset, list[str]]:
    """Return the images of the splits as one data set, each image once, and the names of the splits."""
    spec, root = loaded.store.spec.dataset, loaded.store.source_root
    there = load_manifest(loaded.store.source, root).splits
    names = list(dict.fromkeys(requested)) or ([WHOLE] if WHOLE in there else list(there))
    samples: dict[str, Sample] = {}
    for name in names:
        dataset = relabelled(read_dataset(loaded.store.source, root, name), spec.classes, f"the run {loaded.path}")
        for sample in dataset.samples:
            samples.setdefault(sample.path, sample)
    return replace(dataset, split="+".join(names), samples=list(samples.values())), names


def _left_out(loaded: LoadedRun, dataset: Dataset, trained: frozenset[str]) -> frozenset[str]:
    there = {sample.domain for sample in dataset.samples}
    left_out = frozenset(loaded.config.data.hold_out) or frozenset(there) - trained
    if absent := sorted(left_out - there):
        raise DatasetError(
            f"{dataset.root}, split {dataset.split}, must hold images of every domain that {loaded.path} left out, "
            f"found none of {', '.join(absent)}. Name the `splits` that hold them."
        )
    if there == {""}:
        raise ConfigError(f"Images of {dataset.name} must have domains for cross-domain scores; they have none.")
    if not left_out:
        raise ConfigError(
            f"{loaded.path} must have left a domain out, and was trained on all there are: {', '.join(sorted(there))}. "
            "Train with `hold_out`."
        )
    return left_out


def _of_domain(predictions: Predictions, task: str, here: Sequence[bool]) -> Mapping[str, float | int | None]:
    rows = torch.tensor(here) & predictions.read
    return {"images": int(rows.sum())} | _scores(predictions, task, rows)


def _scores(predictions: Predictions, task: str, rows: torch.Tensor) -> dict[str, float | None]:
    """Scores of the images `rows` [S]; None where there is none."""
    scores, labels = predictions.scores[rows], predictions.labels[rows]
    metrics: dict[str, float | None] = {"map": mean_average_precision(scores, labels)}
    if task == CLASSIFICATION:
        metrics["top1"] = top_k_accuracy(scores, labels, 1)
    return metrics

"""Protocols `cross-domain`, of the domain that was left out of training, and `worst-group`, of the group served worst.

`cross-domain` is DomainBed's (Gulrajani & Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, section 4):
one run for every domain left out (a sweep over `hold_out`); a model is chosen by its score on the training domains
(weights `best`), never on the one left out. DomainBed scores the four fifths of the left-out domain that its own random
split gives; here every image of it counts, of all splits, since none was trained on.

`worst-group` is of Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020, section 3: a
group is a class together with a field that says little of the class by rights, such as the background (the domain of an
image). What matters is the accuracy of the worst group; a mean weighted by how frequent groups are in training is what
they report for Waterbirds, whose validation and test splits are balanced and whose training split is not.
"""

from __future__ import annotations

import glob
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.data import Dataset, Sample, load_manifest, read_dataset
from lfi_pipeline.data.dataset import relabelled
from lfi_pipeline.evaluation.config import FIELD, CrossDomainConfig, EvaluationConfig, WorstGroupConfig
from lfi_pipeline.evaluation.protocols import ProtocolResult, load, scored_split, settings_of
from lfi_pipeline.training.learner import LoadedRun
from lfi_pipeline.training.sampler import training_positions
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
    dataset = _every_image(loaded, config.splits)
    trained = frozenset(loaded.record["seen_domains"])
    left_out = _left_out(loaded, dataset, trained)
    chosen = [sample for sample in dataset.samples if sample.domain in left_out]
    predictions = _predicted(loaded, replace(dataset, samples=chosen, instances={}), common)
    return ProtocolResult(
        protocol="cross-domain",
        settings=settings_of(dataset, common, domains=sorted(left_out)),
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


def _every_image(loaded: LoadedRun, requested: Sequence[str]) -> Dataset:
    """Return the images of the splits as one data set, each image once; its split names them all."""
    spec, root = loaded.store.spec.dataset, loaded.store.source_root
    splits = load_manifest(loaded.store.source, root).splits
    there = [name for name, files in splits.items() if any(_is_there(root / path) for path in files.values())]
    names = list(dict.fromkeys(requested)) or ([WHOLE] if WHOLE in splits else there or list(splits))
    samples: dict[str, Sample] = {}
    for name in names:
        dataset = relabelled(read_dataset(loaded.store.source, root, name), spec.classes, f"the run {loaded.path}")
        for sample in dataset.samples:
            samples.setdefault(sample.path, sample)
    return replace(dataset, split="+".join(names), samples=list(samples.values()))


def _is_there(path: Path) -> bool:
    """Whether there is a file or folder of this name, or one whose name begins with it, as shards of a split have it."""
    return path.exists() or any(path.parent.glob(f"{glob.escape(path.name)}*"))


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


def _predicted(loaded: LoadedRun, dataset: Dataset, common: EvaluationConfig) -> Predictions:
    device = next(loaded.student.parameters()).device
    return predict([loaded.student], dataset, loaded.task, device, workers=common.workers)[0]


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


Group = tuple[str, str]
"""Class and field of a group; the class is "" where groups are of the field alone."""


def worst_group(run: Path, common: EvaluationConfig, config: WorstGroupConfig) -> ProtocolResult:
    """Score `run` group by group, on its validation split or the split that is named.

    Scores, all top-1 accuracies: `mean` over all images alike, `worst_group` the least of any group, and `adjusted`,
    that of the groups weighted by their shares of the training images; None where a group that was trained on is not
    scored. Details: each group's images, accuracy and training images; the worst one; the groups that were left out.

    Raises:
        ConfigError: the run or the split has not one label for each image, an image has no group field, or no group
            has `least_images`.
        UnknownNameError: the data set has no such split.
        DatasetError: the split is not there, or names other classes than the run was trained on.
    """
    began = time.monotonic()
    loaded = load(run, common)
    if loaded.task != CLASSIFICATION:
        raise ConfigError(
            f"Protocol worst-group needs a run whose images have one label each; task of {run} is {loaded.task!r}. Name "
            "another `protocol`."
        )
    dataset = scored_split(loaded, config.split)
    _require_groups(dataset)
    groups = [_group(dataset.classes, s.labels, s.domain, config.groups) for s in dataset.samples]
    predictions = _predicted(loaded, dataset, common)
    trained = _training_groups(loaded, config.groups)
    number_of = {group: number for number, group in enumerate(sorted({*groups, *trained}))}
    numbers = torch.tensor([number_of[group] for group in groups])
    scored: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for group, number in number_of.items():
        rows = (numbers == number) & predictions.read
        name = {"class": group[0], "field": group[1]} if config.groups != FIELD else {"field": group[1]}
        record: dict[str, Any] = {
            **name,
            "images": int(rows.sum()),
            "accuracy": top_k_accuracy(predictions.scores[rows], predictions.labels[rows], 1),
            "training_images": trained[group],
            "training_share": trained[group] / trained.total(),
        }
        (scored if record["images"] >= config.least_images else left_out).append(record)
    if not scored:
        raise ConfigError(
            f"Split {dataset.split} of {dataset.root} must have a group of {config.least_images} images or more, and its "
            f"largest has {max(record['images'] for record in left_out)}. Lower `least_images`."
        )
    worst = min(scored, key=lambda record: float(record["accuracy"]))
    return ProtocolResult(
        protocol="worst-group",
        settings=settings_of(dataset, common, groups=config.groups, least_images=config.least_images),
        scores={
            "worst_group": worst["accuracy"],
            "mean": top_k_accuracy(predictions.scores[predictions.read], predictions.labels[predictions.read], 1),
            "adjusted": _adjusted(scored, left_out),
        },
        details={
            "groups": scored,
            "worst": {part: worst[part] for part in ("class", "field") if part in worst},
            "left_out": left_out,
            "training_split": loaded.store.spec.dataset.split,
            "unreadable": int((~predictions.read).sum()),
        },
        seconds=time.monotonic() - began,
    )


def _require_groups(dataset: Dataset) -> None:
    """Raise a `ConfigError` unless each image has one label and a group field."""
    where = f"split {dataset.split} of {dataset.root}"
    unlike = sum(len(sample.labels) != 1 for sample in dataset.samples)
    if unlike:
        raise ConfigError(
            f"Protocol worst-group needs one label for each image; {unlike} of {len(dataset)} in {where} have none or "
            "several. Name another `protocol`, or a `split` that has them."
        )
    bare = sum(not sample.domain for sample in dataset.samples)
    if bare:
        raise ConfigError(
            f"Protocol worst-group needs a group field (the domain) for each image; {bare} of {len(dataset)} in {where} "
            "have none. Name it in the data set's manifest, or name another `protocol`."
        )


def _group(classes: Sequence[str], labels: Sequence[int], field: str, kind: str) -> Group:
    return ("" if kind == FIELD else classes[labels[0]], field)


def _training_groups(loaded: LoadedRun, kind: str) -> Counter[Group]:
    """Count the images of each group that the run was trained on, as its cache has them."""
    store = loaded.store
    labels, domains = store.index.labels, store.index.domains
    positions = training_positions(store, loaded.config.data.hold_out).tolist()
    return Counter(_group(store.spec.dataset.classes, labels[i], domains[i], kind) for i in positions)


def _adjusted(scored: Sequence[Mapping[str, Any]], left_out: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the accuracy of groups as frequent as in training; None where one of those is not scored."""
    if any(record["training_images"] for record in left_out):
        return None
    return math.fsum(record["accuracy"] * record["training_share"] for record in scored)

"""The task that a cache's labels define, its loss, and scores on a validation split."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.data.dataset import counterpart, relabelled, require_labels
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import NO_SPLIT
from lfi_pipeline.training.data import PlainImages

if TYPE_CHECKING:
    from lfi_pipeline.students import Student

_LOGGER = logging.getLogger(__name__)

CLASSIFICATION, MULTI_LABEL, NONE = "classification", "multi-label", "none"


def resolve_task(task: str, labels: Sequence[Sequence[int]], classes: int) -> str:
    """Return the task that `auto` stands for, or check the task that is named.

    Args:
        task: one of `config.TASKS`.
        labels: of every training image.
        classes: how many there are.

    Raises:
        ConfigError: the labels do not allow the task.
    """
    counts = {len(each) for each in labels}
    if task == NONE:
        return NONE
    if not classes or counts <= {0}:
        raise ConfigError(
            "The cache holds no labels, so there is no task to learn. Train with `task='none'` (pure distillation)."
        )
    if task == "auto":
        return CLASSIFICATION if counts == {1} else MULTI_LABEL
    if task == CLASSIFICATION and counts != {1}:
        raise ConfigError(
            f"task 'classification' needs exactly one label for every image, found images with {sorted(counts)}. "
            "Use `task='multi-label'`."
        )
    return task


def scorable(split: str, store: TargetStore) -> Dataset | None:
    """Return a split of a cache's data set with labels that index the cache's classes; None of the split `none`.

    Raises:
        DatasetError: it holds no image or no label, or has a class that the cache has not.
        UnknownNameError: there is no such split.
    """
    if split == NO_SPLIT:
        return None
    trained = store.spec.dataset
    dataset = read_dataset(store.source, store.source_root, counterpart(split, trained.split))
    require_labels(dataset, "Score another split (val_split), or train without a task (task 'none').")
    paths = set(store.index.paths)
    both = sum(sample.path in paths for sample in dataset.samples)
    if both:
        _LOGGER.warning(
            "%d of %d images of split %s are in the cache %s as well: scores of them say little.",
            both, len(dataset), dataset.split, store.path,
        )  # fmt: skip
    return relabelled(dataset, trained.classes, f"the cache {store.path}")


def probabilities(task: str, logits: Tensor) -> Tensor:
    """Probability of each class, [B, C]."""
    return logits.float().softmax(-1) if task == CLASSIFICATION else logits.float().sigmoid()


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float | None:
    """Share of the labelled images with their label among the `k` highest scores; None where none is labelled.

    Args:
        scores: [S, C], higher is more likely.
        labels: [S, C], 0 or 1.
        k: how many count.
    """
    labelled = labels.any(1)
    if not labelled.any():
        return None
    scores, labels = scores[labelled], labels[labelled]
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return float(labels.gather(1, best).sum(1).clamp(max=1).mean())


def ranks(classes: int) -> tuple[int, ...]:
    """Return the k of the top-k accuracies: a top-5 of five classes or fewer is always 1."""
    return (1, 5) if classes > 5 else (1,)


def main_score(task: str) -> str | None:
    """Name of the validation score by which the best checkpoint is chosen; None: there is none."""
    return {CLASSIFICATION: "top1_seen", MULTI_LABEL: "map_seen"}.get(task)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Scores of a student for S images, and their labels.

    Attributes:
        scores: probabilities [S, C].
        labels: [S, C], 0 or 1; one tensor for all students of one `predict`, as is `read`.
        read: bool [S]; rows of an image that could not be read are zero, and do not count.
    """

    scores: Tensor
    labels: Tensor
    read: Tensor


def mean_average_precision(scores: Tensor, labels: Tensor) -> float | None:
    """Mean over the classes that have a positive of their average precision, in [0, 1]; None where no class has one.

    Args:
        scores: [S, classes], higher is more likely.
        labels: [S, classes], 0 or 1.
    """
    from torchmetrics.functional.classification import multilabel_average_precision  # takes two seconds to import

    has_positive = labels.any(0)
    if not has_positive.any():
        return None
    scores, labels = scores[:, has_positive], labels[:, has_positive]
    if scores.shape[1] == 1:  # torchmetrics takes two labels or more
        scores, labels = scores.repeat(1, 2), labels.repeat(1, 2)
    per_class = multilabel_average_precision(scores, labels.long(), num_labels=scores.shape[1], average="none")
    return float(per_class.mean())


@torch.no_grad()
def predict(
    students: Sequence[Student],
    dataset: Dataset,
    task: str,
    device: torch.device,
    *,
    batch_size: int = 128,
    workers: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> list[Predictions]:
    """Let each student score every image of `dataset`; images are read once for all of them.

    Args:
        students: on `device`; each is left in the mode it was in.
        dataset: the split.
        task: `classification` or `multi-label`.
        device: where to compute.
        batch_size: images at a time.
        workers: loader processes.
        rank, processes: of several processes, each scores a part; rows of the others are zero.
    """
    modes = [student.training for student in students]
    for student in students:
        student.eval()
    mine = range(rank, len(dataset), processes)
    images = PlainImages(dataset, [student.size for student in students])
    truth = torch.zeros(len(dataset), len(dataset.classes))
    seen = torch.zeros(len(dataset), dtype=torch.bool)
    results = [Predictions(torch.zeros_like(truth), truth, seen) for _ in students]
    first = 0
    loader = DataLoader(
        Subset(images, mine), batch_size=batch_size, num_workers=workers, pin_memory=device.type == "cuda"
    )
    for views, labels, read in loader:
        rows = torch.tensor(mine[first : first + len(labels)])
        first += len(labels)
        truth[rows], seen[rows] = labels, read
        missing = batch_size - len(labels)
        if missing and len(mine) > batch_size:  # or a compiled student would be compiled again for the last batch
            views = {size: F.pad(view, (0, 0) * 3 + (0, missing)) for size, view in views.items()}
        on_device = {size: view.to(device, non_blocking=True) for size, view in views.items()}
        for student, result in zip(students, results, strict=True):
            logits = student(on_device[student.size]).logits[: len(labels)]
            result.scores[rows] = probabilities(task, logits).cpu() * read[:, None]
    for student, mode in zip(students, modes, strict=True):
        student.train(mode)
    return results


def score_domains(
    predictions: Predictions, task: str, domains: Sequence[str], seen: frozenset[str]
) -> Mapping[str, float | int | dict[str, float | None] | None]:
    """Return the scores of a split; one that is undefined, as that of no image or of no label, is None.

    `map_seen` and `map_heldout` (mean average precision in [0, 1]) and `map_per_domain`; for classification also
    `top1_seen`, `top1_heldout`, `top5_seen`, `top5_heldout` (accuracy in [0, 1]) and `top1_per_domain`; `unreadable`,
    how many images.

    Args:
        predictions: as `predict` returns them.
        task: `classification` or `multi-label`.
        domains: of each image.
        seen: domains that were trained on; all others are held out.
    """
    parts = {"seen": [domain in seen for domain in domains]}
    parts["heldout"] = [not each for each in parts["seen"]]

    def rows_of(chosen: Sequence[bool]) -> Tensor:
        return torch.tensor(chosen, dtype=torch.bool) & predictions.read

    def mean_precision(chosen: Sequence[bool]) -> float | None:
        rows = rows_of(chosen)
        return mean_average_precision(predictions.scores[rows], predictions.labels[rows])

    def accuracy(chosen: Sequence[bool], k: int) -> float | None:
        rows = rows_of(chosen)
        return top_k_accuracy(predictions.scores[rows], predictions.labels[rows], k)

    scores: dict[str, float | int | dict[str, float | None] | None] = {
        f"map_{name}": mean_precision(chosen) for name, chosen in parts.items()
    }
    alone = {name: [domain == name for domain in domains] for name in sorted(set(domains))}
    scores["map_per_domain"] = {name: mean_precision(chosen) for name, chosen in alone.items()}
    if task == CLASSIFICATION:
        scores["top1_per_domain"] = {name: accuracy(chosen, 1) for name, chosen in alone.items()}
        for k in ranks(predictions.labels.shape[1]):
            scores |= {f"top{k}_{name}": accuracy(chosen, k) for name, chosen in parts.items()}
    return scores | {"unreadable": int((~predictions.read).sum())}

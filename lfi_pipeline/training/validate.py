"""Multi-label mean average precision, on seen and on held-out domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multilabel_average_precision

from lfi_pipeline.data import Dataset
from lfi_pipeline.errors import DatasetError
from lfi_pipeline.training.data import PlainImages


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Mean over the classes that have a positive of their average precision, in [0, 1].

    Args:
        scores: [S, classes], higher is more likely.
        labels: [S, classes], 0 or 1.

    Raises:
        DatasetError: no class has a positive.
    """
    has_positive = labels.any(0)
    if not has_positive.any():
        raise DatasetError("Mean average precision needs at least one positive label, found none.")
    scores, labels = scores[:, has_positive], labels[:, has_positive]
    if scores.shape[1] == 1:  # torchmetrics takes two labels or more
        scores, labels = scores.repeat(1, 2), labels.repeat(1, 2)
    per_class = multilabel_average_precision(scores, labels.long(), num_labels=scores.shape[1], average="none")
    return float(per_class.mean())


@torch.no_grad()
def predict(
    student: nn.Module,
    dataset: Dataset,
    size: tuple[int, int],
    device: torch.device,
    *,
    batch_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """Return the student's probabilities and the labels of every image of `dataset`, each [S, classes]."""
    was_training = student.training
    student.eval()
    scores, labels = [], []
    for images, truth in DataLoader(PlainImages(dataset, size), batch_size=batch_size):
        scores.append(student(images.to(device), with_taps=False).logits.float().sigmoid().cpu())
        labels.append(truth)
    student.train(was_training)
    return torch.cat(scores), torch.cat(labels)


def score_domains(
    scores: Tensor, labels: Tensor, domains: Sequence[str], seen: frozenset[str]
) -> Mapping[str, float | dict[str, float] | None]:
    """Return `map_seen` and `map_heldout` (None where there is no such image) and `map_per_domain`.

    Args:
        scores, labels: as `predict` returns them.
        domains: of each image.
        seen: domains that were trained on; all others are held out.
    """

    def over(chosen: Sequence[bool]) -> float | None:
        rows = torch.tensor(chosen)
        return mean_average_precision(scores[rows], labels[rows]) if rows.any() else None

    names = sorted(set(domains))
    return {
        "map_seen": over([domain in seen for domain in domains]),
        "map_heldout": over([domain not in seen for domain in domains]),
        "map_per_domain": {name: over([domain == name for domain in domains]) or 0.0 for name in names},
    }

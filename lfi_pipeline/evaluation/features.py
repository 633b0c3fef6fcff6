"""What a frozen student makes of the images of a split: its pooled features and its head's logits, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from lfi_pipeline.data import Dataset
from lfi_pipeline.students import Student
from lfi_pipeline.training.data import PlainImages

_BATCH = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenFeatures:
    """Of S images, on the CPU.

    Attributes:
        pooled: fp32 [S, D].
        logits: fp32 [S, C]; None for a student without a head.
        labels: bool [S, C].
        read: bool [S]; False where an image could not be read: what is said of it does not count.
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
    with tqdm(total=len(chosen), desc=f"features of {dataset.split}", unit="image", leave=False) as bar:
        for views, labels, read in DataLoader(images, batch_size=_BATCH, num_workers=workers):
            features = student(views[student.size].to(device))
            logits = features.logits.float().cpu() if features.logits is not None else None
            parts.append((features.pooled.float().cpu(), logits, labels.bool(), read))
            bar.update(len(labels))
    pooled, logits_of, labels_of, read_of = zip(*parts, strict=True)
    return FrozenFeatures(
        pooled=torch.cat(pooled),
        logits=torch.cat(logits_of) if student.head is not None else None,
        labels=torch.cat(labels_of),
        read=torch.cat(read_of),
    )

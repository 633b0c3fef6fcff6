"""What every term of an objective is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from lfi_pipeline.data.mixing import mixed_loss
from lfi_pipeline.students import Features, Student
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.data import Batch, CutTargets


@dataclass(frozen=True, kw_only=True, slots=True)
class StepContext:
    """One piece of a step's batch, as a term sees it.

    Attributes:
        batch: B examples.
        share: weight that a mean over this piece has in the step: B over the images of the whole batch, times the
            number of processes (whose gradients are averaged). 1 where the piece is the whole.
        mass: [taps], total weight of the words at each tap over the whole batch, divided by the number of processes.
        cut: the target maps of these examples; None where no term reads maps.
        present: [B, M'], 1 for a word of the image, 0 for one that was drawn from the vocabulary; NaN for neither.
    """

    batch: Batch
    share: float
    mass: Tensor | None = None
    present: Tensor | None = None
    cut: CutTargets | None = None


class Term(nn.Module, ABC):
    """One term: a scalar for each piece of a batch. Pieces add up to the value of the whole batch."""

    reads: ClassVar[frozenset[str]] = frozenset()
    """Targets it needs, of `data.MAPS` and `data.IMAGE_EMBEDDING`."""

    reads_taps: ClassVar[bool] = False
    """Whether it needs `Features.taps` where no queries do."""

    @classmethod
    @abstractmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        """Make the term for a student. Raises ConfigError where the cache does not hold what it needs."""

    @abstractmethod
    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        """Return the loss of a piece, scalar, already weighted by its share of the batch."""


def mean_over_images(loss_of: Callable[[Tensor], Tensor], target: Tensor, batch: Batch) -> Tensor:
    """Mean of `loss_of(target)` [B] over images; of mixed ones it counts against both targets, by their shares.

    Args:
        loss_of: from targets [B, ...] to the loss of each image.
        target: what the teacher said of the unmixed images; it never saw the mixtures.
        batch: the examples.
    """
    return (loss_of(target) if batch.mix is None else mixed_loss(loss_of, target, batch.mix)).mean()

"""Know which words an image holds: words of its text against words drawn from the vocabulary."""

from __future__ import annotations

from typing import Self

from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.students import Features, Student, TextQueries
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.data import MAPS
from lfi_pipeline.training.objectives.term import StepContext, Term


class PresenceTerm(Term):
    """Binary cross-entropy of the presence score, mean over the words of an image, then over images.

    Words of the image whose mass lies outside the crop count as neither. Words drawn have no map, and do not enter the
    interaction term. This term and its form are this project's choice.
    """

    reads = frozenset({MAPS})

    @classmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        return cls()

    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        assert isinstance(student.queries, TextQueries)
        assert features.interaction is not None
        assert context.present is not None
        scores = student.queries.presence_scores(features.interaction)
        known = ~context.present.isnan()
        losses = F.binary_cross_entropy_with_logits(scores, context.present.nan_to_num(), reduction="none")
        per_image = (losses * known).sum(1) / known.sum(1).clamp_min(1)
        return per_image.mean() * context.share

"""Conclude what the teacher concludes: its zero-shot class logits."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from lfi_pipeline.students import Features, Student
from lfi_pipeline.targets import TargetStore, ZeroShot
from lfi_pipeline.targets.zero_shot import class_weights, image_logits
from lfi_pipeline.training.data import IMAGE_EMBEDDING
from lfi_pipeline.training.objectives.logit_distillation import logit_distillation, require_zero_shot
from lfi_pipeline.training.objectives.term import StepContext, Term, mean_over_images

_TEMPERATURE = 4.0  # the zero-shot probabilities are nearly one-hot at 1; not tuned


class LogitsTerm(Term):
    """KL from the teacher's zero-shot class probabilities to the student's, mean, in nats (see `logit_distillation`).

    The teacher's logits are made of the cached image embedding and the cached text embeddings of the classes.
    """

    reads = frozenset({IMAGE_EMBEDDING})

    def __init__(self, zero_shot: ZeroShot) -> None:
        super().__init__()
        self.register_buffer("weights", class_weights(zero_shot), persistent=False)

    weights: Tensor

    @classmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        return cls(require_zero_shot(store))

    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        batch = context.batch
        assert batch.image_embedding is not None
        assert features.logits is not None
        found = features.logits

        def divergence(wanted: Tensor) -> Tensor:
            return logit_distillation(found, wanted, temperature=_TEMPERATURE)

        return mean_over_images(divergence, image_logits(batch.image_embedding, self.weights), batch) * context.share

"""Conclude what the teacher concludes: the image embedding."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.students import Features, Student
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.data import IMAGE_EMBEDDING
from lfi_pipeline.training.objectives.term import StepContext, Term, mean_over_images


class EmbeddingTerm(Term):
    """1 - cosine between the projected pooled features and the teacher's image embedding, mean; in [0, 2].

    Args:
        width: D of the pooled features.
        embedding_dim: E of the teacher.
    """

    reads = frozenset({IMAGE_EMBEDDING})

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, embedding_dim)

    @classmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        return cls(student.pooled_width, store.spec.embedding_dim)

    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        batch = context.batch
        assert batch.image_embedding is not None
        projected = self.projection(features.pooled).float()

        def distance(target: Tensor) -> Tensor:
            return 1 - F.cosine_similarity(projected, target, dim=-1)

        return mean_over_images(distance, batch.image_embedding, batch) * context.share

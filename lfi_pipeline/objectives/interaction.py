"""Look where the teacher looks: KL from its interaction maps to those of the student's queries."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from lfi_pipeline.objectives.terms import StepContext, Term
from lfi_pipeline.students import Features, Student
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.data import MAPS

_LEAST_MASS = 1e-6


class InteractionTerm(Term):
    """Mean over taps of L_t = sum_m w_m mean_h KL(T_t,m || P_t,h,m) / sum_m w_m, in nats (training/README.md).

    Both sums run over the words of the whole batch, however many pieces it is computed in.
    """

    reads = frozenset({MAPS})

    @classmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        return cls()

    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        assert features.interaction is not None
        assert context.mass is not None
        sums = torch.stack([kl.sum() for kl in features.interaction.kl])
        return (sums / context.mass.clamp_min(_LEAST_MASS)).mean()

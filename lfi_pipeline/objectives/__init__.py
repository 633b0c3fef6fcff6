"""Terms of an objective, each a module with whatever parameters it needs in training."""

from __future__ import annotations

from lfi_pipeline.objectives.interaction import AttentionTerm, InteractionTerm
from lfi_pipeline.objectives.terms import EmbeddingTerm, LogitsTerm, PresenceTerm, StepContext, Term
from lfi_pipeline.students import Student
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import TrainConfig

__all__ = ["TERM_CLASSES", "StepContext", "Term", "build_terms"]

TERM_CLASSES: dict[str, type[Term]] = {
    "lfi": InteractionTerm,
    "embedding": EmbeddingTerm,
    "logits": LogitsTerm,
    "presence": PresenceTerm,
    "attention": AttentionTerm,
}


def build_terms(config: TrainConfig, student: Student, store: TargetStore, task: str) -> dict[str, Term]:
    """Return the terms of `config.objective`, by name.

    Raises:
        ConfigError: the cache does not hold what a term needs.
    """
    return {name: TERM_CLASSES[name].build(student, store, task) for name in config.terms}

"""Evaluation protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.evaluation.config import EvaluationConfig
    from lfi_pipeline.evaluation.grounding import Grounding, grounded_words, teacher_grounding
    from lfi_pipeline.evaluation.protocols import evaluate_runs
    from lfi_pipeline.evaluation.zero_shot import ZeroShotScore, teacher_zero_shot

__all__ = [
    "EvaluationConfig",
    "Grounding",
    "ZeroShotScore",
    "evaluate_runs",
    "grounded_words",
    "teacher_grounding",
    "teacher_zero_shot",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "config": ["EvaluationConfig"],
        "grounding": ["Grounding", "grounded_words", "teacher_grounding"],
        "protocols": ["evaluate_runs"],
        "zero_shot": ["ZeroShotScore", "teacher_zero_shot"],
    },
)

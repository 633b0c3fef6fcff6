"""Evaluation protocols."""

from lfi_pipeline.evaluation.config import EvaluationConfig
from lfi_pipeline.evaluation.grounding import Grounding, grounded_words, teacher_grounding
from lfi_pipeline.evaluation.run import evaluate_runs
from lfi_pipeline.evaluation.teacher_zero_shot import ZeroShotScore, teacher_zero_shot

__all__ = [
    "EvaluationConfig",
    "Grounding",
    "ZeroShotScore",
    "evaluate_runs",
    "grounded_words",
    "teacher_grounding",
    "teacher_zero_shot",
]

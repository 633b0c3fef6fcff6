"""Evaluation protocols."""

from lfi_pipeline.evaluation.grounding import Grounding, grounded_words, teacher_grounding
from lfi_pipeline.evaluation.run import evaluate_run

__all__ = ["Grounding", "evaluate_run", "grounded_words", "teacher_grounding"]

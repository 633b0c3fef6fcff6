"""The human study kit: a page that asks which of two runs' maps is better, and what the answers say."""

from lfi_pipeline.study.make import Study, StudyConfig, make_study
from lfi_pipeline.study.score import StudyScore, score_study

__all__ = ["Study", "StudyConfig", "StudyScore", "make_study", "score_study"]

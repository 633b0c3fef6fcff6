"""The human study kit: a page that asks which of two runs' maps is better, and what the answers say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.study.answers import StudyConfig
    from lfi_pipeline.study.make import Study, make_study
    from lfi_pipeline.study.score import StudyScore, score_study

__all__ = ["Study", "StudyConfig", "StudyScore", "make_study", "score_study"]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(
        __name__, {"answers": ["StudyConfig"], "make": ["Study", "make_study"], "score": ["StudyScore", "score_study"]}
    )

"""Students: timm backbones that meet interaction queries at their taps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.students.backbone import Tap, TapModel, pair_layers
    from lfi_pipeline.students.config import QueryConfig, StudentConfig
    from lfi_pipeline.students.query_head import QueryHead, QueryOutput, Supervision, TextQueries
    from lfi_pipeline.students.student import Features, Student

__all__ = [
    "Features",
    "QueryConfig",
    "QueryHead",
    "QueryOutput",
    "Student",
    "StudentConfig",
    "Supervision",
    "Tap",
    "TapModel",
    "TextQueries",
    "pair_layers",
]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(
        __name__,
        {
            "backbone": ["Tap", "TapModel", "pair_layers"],
            "config": ["QueryConfig", "StudentConfig"],
            "query_head": ["QueryHead", "QueryOutput", "Supervision", "TextQueries"],
            "student": ["Features", "Student"],
        },
    )

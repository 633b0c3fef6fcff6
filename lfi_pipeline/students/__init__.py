"""Students: timm backbones that meet interaction queries at their taps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.students.backbone import Tap, pair_layers
    from lfi_pipeline.students.config import QueryConfig, StudentConfig
    from lfi_pipeline.students.learned_queries import LearnedQueries
    from lfi_pipeline.students.queries import QueryOutput, Supervision, TextQueries
    from lfi_pipeline.students.student import Features, Student

__all__ = [
    "Features",
    "LearnedQueries",
    "QueryConfig",
    "QueryOutput",
    "Student",
    "StudentConfig",
    "Supervision",
    "Tap",
    "TextQueries",
    "pair_layers",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "backbone": ["Tap", "pair_layers"],
        "config": ["QueryConfig", "StudentConfig"],
        "learned_queries": ["LearnedQueries"],
        "queries": ["QueryOutput", "Supervision", "TextQueries"],
        "student": ["Features", "Student"],
    },
)

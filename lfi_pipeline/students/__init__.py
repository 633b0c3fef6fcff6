"""Students: timm backbones that meet interaction queries at their taps."""

from lfi_pipeline.students.backbone import StudentConfig, Tap, pair_layers
from lfi_pipeline.students.learned_queries import LearnedQueries
from lfi_pipeline.students.queries import QueryConfig, QueryOutput, Supervision
from lfi_pipeline.students.student import Features, Student
from lfi_pipeline.students.text_queries import TextQueries

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

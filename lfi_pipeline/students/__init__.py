"""Students: timm backbones that meet interaction queries at their taps."""

from lfi_pipeline.students.backbone import StudentConfig, Tap, pair_layers
from lfi_pipeline.students.queries import QueryConfig
from lfi_pipeline.students.student import Features, Student

__all__ = ["Features", "QueryConfig", "Student", "StudentConfig", "Tap", "pair_layers"]

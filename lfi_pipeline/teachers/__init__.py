"""Teachers: vision-language models that give interaction maps. Stage one only; stage two never imports this."""

from lfi_pipeline.teachers.coca import CocaTeacher, InteractionMaps
from lfi_pipeline.teachers.registry import load_teacher, teacher_names

__all__ = ["CocaTeacher", "InteractionMaps", "load_teacher", "teacher_names"]

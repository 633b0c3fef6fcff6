"""Teachers: vision-language models that give interaction maps. Stage one only; stage two never imports this."""

from lfi_pipeline.teachers.coca import CocaTeacher
from lfi_pipeline.teachers.registry import load_teacher, teacher_names
from lfi_pipeline.teachers.teacher import InteractionMaps, Teacher

__all__ = ["CocaTeacher", "InteractionMaps", "Teacher", "load_teacher", "teacher_names"]

"""Teachers: vision-language models that give interaction maps. Stage one only; stage two never imports this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.teachers.coca import CocaTeacher
    from lfi_pipeline.teachers.module import TeacherModule
    from lfi_pipeline.teachers.registry import load_teacher, teacher_names
    from lfi_pipeline.teachers.teacher import InteractionMaps, Teacher

__all__ = ["CocaTeacher", "InteractionMaps", "Teacher", "TeacherModule", "load_teacher", "teacher_names"]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(
        __name__,
        {
            "coca": ["CocaTeacher"],
            "module": ["TeacherModule"],
            "registry": ["load_teacher", "teacher_names"],
            "teacher": ["InteractionMaps", "Teacher"],
        },
    )

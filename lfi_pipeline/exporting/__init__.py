"""Export: a trained student as a plain timm checkpoint that needs nothing of this project, and whole with its head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.exporting.model import Model, load
    from lfi_pipeline.exporting.run import export_run

__all__ = ["Model", "export_run", "load"]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(__name__, {"model": ["Model", "load"], "run": ["export_run"]})

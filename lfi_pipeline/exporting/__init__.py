"""Export: a trained student as a plain timm checkpoint that needs nothing of this project."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.exporting.run import export_run

__all__ = ["export_run"]

__getattr__ = lazy_exports(__name__, {"run": ["export_run"]})

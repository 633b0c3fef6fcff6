"""Export: a trained student as a plain timm checkpoint that needs nothing of this project."""

from lfi_pipeline.export.run import export_run

__all__ = ["export_run"]

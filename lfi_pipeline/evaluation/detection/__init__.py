"""Box AP and mask AP of a student's backbone, by fine-tuning Mask R-CNN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.evaluation.config import DetectionConfig
    from lfi_pipeline.evaluation.detection.protocol import detection

__all__ = ["DetectionConfig", "detection"]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(__name__, {"protocol": ["DetectionConfig", "detection"]})

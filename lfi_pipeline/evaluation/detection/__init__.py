"""Box AP and mask AP of a student's backbone, by fine-tuning Mask R-CNN."""

from __future__ import annotations

from lfi_pipeline.evaluation.detection.protocol import SOURCES, DetectionConfig, detection

__all__ = ["SOURCES", "DetectionConfig", "detection"]

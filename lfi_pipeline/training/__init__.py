"""Training: objectives, loop and run directories."""

from lfi_pipeline.training.config import MAPS, OBJECTIVES, PRECISIONS, TrainConfig
from lfi_pipeline.training.loop import Trainer, build_student

__all__ = ["MAPS", "OBJECTIVES", "PRECISIONS", "TrainConfig", "Trainer", "build_student"]

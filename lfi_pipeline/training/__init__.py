"""Training: settings, objectives, loop and run directories."""

from lfi_pipeline.training.config import (
    MAPS,
    PRECISIONS,
    SCHEDULES,
    TASKS,
    TERMS,
    Machine,
    OptimizerConfig,
    StreamConfig,
    TrainConfig,
)
from lfi_pipeline.training.loop import train

__all__ = [
    "MAPS",
    "PRECISIONS",
    "SCHEDULES",
    "TASKS",
    "TERMS",
    "Machine",
    "OptimizerConfig",
    "StreamConfig",
    "TrainConfig",
    "train",
]

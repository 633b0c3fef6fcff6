"""Training: settings, objectives, loop and run directories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.training.config import (
        MAPS,
        PRECISIONS,
        SCHEDULES,
        TASKS,
        TERMS,
        DataConfig,
        OptimizerConfig,
        RuntimeConfig,
        TrainConfig,
    )
    from lfi_pipeline.training.loop import train
    from lfi_pipeline.training.surroundings import Callback

__all__ = [
    "MAPS",
    "PRECISIONS",
    "SCHEDULES",
    "TASKS",
    "TERMS",
    "Callback",
    "DataConfig",
    "OptimizerConfig",
    "RuntimeConfig",
    "TrainConfig",
    "train",
]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(
        __name__,
        {
            "config": [
                "MAPS",
                "PRECISIONS",
                "SCHEDULES",
                "TASKS",
                "TERMS",
                "RuntimeConfig",
                "OptimizerConfig",
                "DataConfig",
                "TrainConfig",
            ],
            "loop": ["train"],
            "surroundings": ["Callback"],
        },
    )

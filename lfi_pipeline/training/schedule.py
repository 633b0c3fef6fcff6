"""Learning rate over a run, one value a step."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler

from lfi_pipeline.training.config import OptimizerConfig

_WARMUP_START = 0.01  # of the peak


def make_schedule(
    config: OptimizerConfig, optimizer: torch.optim.Optimizer, steps: int, steps_per_epoch: int
) -> Scheduler:
    """Return timm's scheduler for `config`; call its `step_update(step)` before step 0, 1, ... `steps` - 1."""
    common: dict[str, Any] = {
        "warmup_t": min(config.warmup_epochs * steps_per_epoch, steps - 1),
        "warmup_lr_init": config.learning_rate * _WARMUP_START,
        "warmup_prefix": False,
        "t_in_epochs": False,
    }
    match config.schedule:
        case "cosine":
            return CosineLRScheduler(optimizer, t_initial=steps, **common)
        case "linear":
            return PolyLRScheduler(optimizer, t_initial=steps, power=1.0, **common)
    return StepLRScheduler(optimizer, decay_t=steps + 1, **common)

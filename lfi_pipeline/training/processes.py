"""The processes that share a run."""

from __future__ import annotations

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs


def make_accelerator(device: str) -> Accelerator:
    """Processes and communication are Accelerate's; precision is the run's own setting, whatever launched it."""
    return Accelerator(
        cpu=device == "cpu" or not torch.cuda.is_available(),
        device_placement=False,
        mixed_precision="no",
        # the last tap's value projection has no gradient where nothing reads the queries' final state
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )

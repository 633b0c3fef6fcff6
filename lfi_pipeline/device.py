"""Where to compute: the one place in which `auto` is resolved."""

from __future__ import annotations

import torch

from lfi_pipeline.errors import ConfigError


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device that `auto` or a torch device name stands for.

    Args:
        name: `auto`, or as torch names devices.
        local_rank: number of this process on its machine; with `auto` each gets a GPU of its own, while there are some.

    Raises:
        ConfigError: not a device name, or a device that this machine does not have.
    """
    if name == "auto":
        name = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).split("\n")[0]
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, and be there, got {name!r} ({first})") from error
    return device

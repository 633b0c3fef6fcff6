"""Where and in what precision to compute, and how many operations a piece of PyTorch code does."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lfi_pipeline.core.errors import ConfigError, UnknownNameError


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


Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Return what `auto` (bf16 on CUDA, fp32 elsewhere) or a name of `DTYPES` stands for.

    Raises:
        UnknownNameError: neither.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if name not in DTYPES:
        raise UnknownNameError("precision", name, ("auto", *DTYPES))
    return cast(Precision, name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Compute in `precision` inside; nothing is changed for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts matrix products, convolutions and attention while it is entered, forward and backward.

    A multiplication and an addition are two. It takes torch's own formulas, and not torch's `FlopCounterMode`, whose
    hooks on modules do not go together with `autograd.grad` inside of `vmap`.

    Attributes:
        total: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and count it."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out

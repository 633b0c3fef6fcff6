"""Where and in what precision to compute, how many operations that takes, and how far a long job is."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from lfi_pipeline.core.errors import ConfigError, UnknownNameError

T = TypeVar("T")

SECONDS = 30.0
"""Between two lines where stderr is no terminal."""


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str = "",
    unit: str = "it",
    total: int | None = None,
    initial: int = 0,
    leave: bool = True,
    delay: float = 0.0,
    disable: bool = False,
) -> Any:
    """Return a bar of tqdm where stderr is a terminal, else a `ProgressLines`; both are used in the same way.

    Args:
        iterable: what is gone through; None for a bar that is moved by `update`.
        desc: what is done.
        unit: what is counted.
        total: how many there are; by default the length of `iterable`.
        initial: how many were done before.
        leave: keep the bar when it is full.
        delay: seconds before the bar is shown.
        disable: show nothing.
    """
    if disable or sys.stderr.isatty():
        return tqdm(
            iterable, desc=desc or None, unit=unit, total=total, initial=initial, leave=leave, delay=delay,
            disable=disable,
        )  # fmt: skip
    return ProgressLines(iterable, desc=desc, unit=unit, total=total, initial=initial)


def tell(*lines: str) -> None:
    """Write lines to stderr, beside the bar where there is one."""
    for line in lines:
        tqdm.write(line, file=sys.stderr)


class ProgressLines(Generic[T]):
    """Writes a line to stderr every `SECONDS`; what takes less is silent.

    Args:
        iterable: what is gone through, or None.
        desc: what is done.
        unit: what is counted.
        total: how many there are; by default the length of `iterable`.
        initial: how many were done before.
    """

    def __init__(
        self,
        iterable: Iterable[T] | None = None,
        *,
        desc: str = "",
        unit: str = "it",
        total: int | None = None,
        initial: int = 0,
    ) -> None:
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        self.n, self.total = initial, total
        self._iterable, self._desc, self._unit, self._initial = iterable, desc, unit, initial
        self._postfix = ""
        self._began = self._told = time.monotonic()

    def __iter__(self) -> Iterator[T]:
        for each in self._iterable or ():
            yield each
            self.update()

    def update(self, n: int = 1) -> None:
        """Count `n` more, and write a line where `SECONDS` have passed since the last."""
        self.n += n
        now = time.monotonic()
        if now - self._told >= SECONDS:
            self._told = now
            sys.stderr.write(self._line(now) + "\n")
            sys.stderr.flush()

    def set_postfix(self, refresh: bool = True, **values: object) -> None:
        """Add `values` to the next lines."""
        self._postfix = ", ".join(f"{name} {value}" for name, value in values.items())

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        """Add `text` to the next lines."""
        self._postfix = text

    def set_description(self, desc: str = "", refresh: bool = True) -> None:
        """Change the description that lines begin with."""
        self._desc = desc

    def close(self) -> None:
        """Do nothing; bars of tqdm, in whose place this stands, have the method."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, now: float) -> str:
        rate = (self.n - self._initial) / max(now - self._began, 1e-9)
        parts = [f"{self.n} {self._unit}s"]
        if self.total:
            parts = [f"{self.n}/{self.total} {self._unit}s ({self.n / self.total:.0%})"]
        parts.append(f"{rate:.3g} {self._unit}s/s")
        if self.total and rate > 0:
            parts.append(f"{_span((self.total - self.n) / rate)} left")
        text = ", ".join([*parts, self._postfix] if self._postfix else parts)
        return f"{self._desc}: {text}" if self._desc else text


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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


def require_compiler() -> None:
    """Check that torch can compile: it and Triton build with a C++ compiler.

    Raises:
        ConfigError: there is none.
    """
    compilers = [os.environ.get("CXX", "g++"), os.environ.get("CC", "gcc"), "clang++", "clang"]
    if not any(map(shutil.which, compilers)):
        raise ConfigError(
            f"compile needs a C++ compiler ({' or '.join(compilers)}), and none is on the PATH. Install one, or leave "
            "it out.",
            argument="compile",
        )


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Have torch compute with `count` threads inside, on a CPU; 0 leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def _attention_on_a_cpu(operator: Any) -> Any:
    """Return torch's formula of attention for its operators on a CPU, which its registry does not know in every release."""
    aten = torch.ops.aten
    same = {
        aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
    }
    return flop_registry.get(same[operator]) if operator in same else None


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
        formula = flop_registry.get(func._overloadpacket) or _attention_on_a_cpu(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out

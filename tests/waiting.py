"""What would make this process wait for a GPU, looked for among all operations: on a CPU, which waits for nothing."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {  # operators whose result has a size or a value that the host needs to know
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "is_nonzero", "item",
}  # fmt: skip
READS = ("tolist", "cpu", "numpy")  # of a tensor, by no operator


class Waits(TorchDispatchMode):
    """Counts what would wait for a device, by operator and by the line of this project that asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.thread = threading.get_ident()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        picks = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITS or picks or repeats:
            self.add(name)
        return func(*args, **(kwargs or {}))

    def add(self, name: str) -> None:
        if threading.get_ident() != self.thread:
            return
        frame = sys._getframe(1)
        while frame.f_back is not None and not frame.f_globals.get("__name__", "").startswith("lfi_"):
            frame = frame.f_back
        self.counts[f"{name} in {frame.f_globals.get('__name__')}.{frame.f_code.co_name}"] += 1


class Copies(TorchFunctionMode):
    """Counts what takes numbers of the host to a device out of memory that is not pinned, or waits for the copy.

    A mode, since no special method of `torch.Tensor` may be patched: its type would never again be what it was.
    """

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = getattr(func, "__name__", ""), kwargs or {}
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if not caller.startswith(("torch", "open_clip", "timm")) and self._waits(name, args, options):
            self.waits.add(name)
        return func(*args, **options)

    @staticmethod
    def _waits(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
        if name == "tensor":
            return "device" in options
        if name == "to":
            placed = "device" in options or any(
                isinstance(each, str | torch.device | torch.Tensor) for each in args[1:]
            )
            return placed and not options.get("non_blocking")
        if name not in ("__getitem__", "__setitem__"):
            return False
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(each, list | np.ndarray) for each in index)


@contextmanager
def watched(*, copies: bool = False) -> Iterator[Counter[str]]:
    """Yield the counts of what would wait inside; reading a tensor without an operator counts as well.

    Args:
        copies: count also what this project copies to a device in a way that waits, as an index that is a list is.
    """
    waits = Waits()
    with pytest.MonkeyPatch.context() as patch, waits, Copies(waits) if copies else nullcontext():
        for name in READS:
            original = getattr(torch.Tensor, name)
            patch.setattr(
                torch.Tensor,
                name,
                lambda self, *args, original=original, name=name, **kw: (waits.add(name), original(self, *args, **kw))[
                    1
                ],
            )
        yield waits.counts

"""A stand-in for CUDA on the CPU: graphs that run their work again, events on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_kernels.bench import cases
from lfi_kernels.bench.timing import Work


class Graph:
    """What was captured into it is told to `log` at every replay."""

    log: list[str]

    def __init__(self) -> None:
        self.name = "unused"

    def pool(self) -> str:
        return f"pool of {self.name}"

    def replay(self) -> None:
        self.log.append(f"replay {self.name}")


class Event:
    """A moment of `Event.now`."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


def stand_in(patch: pytest.MonkeyPatch) -> list[str]:
    """Put the stand-in in place, and return the log of what is captured and replayed."""
    log: list[str] = []
    graphs: list[Graph] = []

    @contextmanager
    def capture(graph: Graph, pool: str | None = None) -> Iterator[None]:
        graphs.append(graph)
        graph.name, graph.log = f"graph {len(graphs)}", log
        log.append(f"capture {graph.name}" + (f" in {pool}" if pool else ""))
        yield
        log.append(f"captured {graph.name}")

    for name, value in {
        "CUDAGraph": Graph,
        "graph": capture,
        "Event": Event,
        "Stream": Stream,
        "device": lambda device: nullcontext(),
        "stream": lambda stream: nullcontext(),
        "current_stream": Stream,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1000,
        "max_memory_allocated": lambda: 1000 + 2**21,
    }.items():
        patch.setattr(torch.cuda, name, value)
    return log


def on_stand_in(patch: pytest.MonkeyPatch) -> list[str]:
    """Let `compare` on "cuda" run on the CPU: the fused cases by the reference, compiled ones as they are."""
    log = stand_in(patch)
    make: Callable[..., Any] = cases.make_cases
    patch.setattr(cases, "FUSED", "reference")
    patch.setitem(cases.WAYS, "flex", cases.projected)  # FlexAttention has no backward pass on the CPU
    patch.setattr(torch, "compile", lambda way, dynamic: way)
    module = import_module("lfi_kernels.bench.compare")  # the package's own name for it is the function's
    patch.setattr(module, "make_cases", lambda shape, device, names: make(shape, "cpu", names))
    return log


def tick(seconds: float) -> None:
    """Let time pass on the stand-in."""
    Event.now += seconds


def tiny_work(log: list[str] | None = None) -> Work:
    """x * w and sum x^2 of x [B, 3], with one shared parameter; tells `log` when it runs."""
    x, y = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    w = torch.randn(3, requires_grad=True)

    def run() -> tuple[Tensor, Tensor]:
        if log is not None:
            log.append("forward")
        return x * w, (x * y).sum(-1)

    return Work(run=run, leaves=(x, y, w), constants=(), choice="reference")

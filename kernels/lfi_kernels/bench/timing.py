"""Time of the forward pass, of the backward pass and of both.

On the CPU, seconds around the calls. On a GPU each pass is captured as a CUDA graph, and the seconds lie between
events around the replays, so that the time it takes to launch kernels from Python does not count. The replays before
the timed ones keep the GPU busy while those are queued. A work that cannot be captured is called instead, between the
same events, and a warning says so: launching then counts.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from lfi_kernels.bench.work import Work, upstream_of


class Passes(Protocol):
    """What is timed. A backward pass follows the forward pass whose results it differentiates."""

    def forward(self) -> None: ...
    def backward(self) -> None: ...


class Called:
    """Plain calls."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._outputs = work.forward()
        self._upstream = upstream_of(self._outputs)

    def forward(self) -> None:
        self._outputs = self._work.forward()

    def backward(self) -> None:
        self._work.backward(self._outputs, self._upstream)


class Replayed:
    """CUDA graphs of the two passes, in memory that they share.

    Raises:
        RuntimeError: a pass cannot be captured.
    """

    def __init__(self, work: Work) -> None:
        called = Called(work)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # handles, workspaces and tuning come before a capture
            for _ in range(3):
                called.forward()
                called.backward()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        self._upstream = called._upstream
        del called
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward):
            outputs = work.forward()
        with torch.cuda.graph(self._backward, pool=self._forward.pool()):
            work.backward(outputs, self._upstream)

    def forward(self) -> None:
        self._forward.replay()

    def backward(self) -> None:
        self._backward.replay()


def passes_of(name: str, work: Work, is_cuda: bool) -> Passes:
    """Capture a work on a GPU; elsewhere, and where that fails, call it."""
    if is_cuda:
        try:
            return Replayed(work)
        except RuntimeError as error:
            warnings.warn(f"{name} is timed by calls, for no CUDA graph can be made of it: {error}", stacklevel=2)
    return Called(work)


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of each round."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        """Median seconds by the name of the pass."""
        return {name: statistics.median(getattr(self, name)) for name in PASSES}


PASSES = ("forward", "backward", "both")


def take_turns(passes: Mapping[str, Passes], rounds: int, is_cuda: bool) -> dict[str, Seconds]:
    """Time each case `rounds` times, in turns, after a round that does not count."""
    seconds = {name: Seconds() for name in passes}
    for number in range(rounds + 1):
        for name, each in passes.items():
            if is_cuda:
                each.forward()
                each.backward()
            marks = [mark(is_cuda)]
            each.forward()
            marks.append(mark(is_cuda))
            each.backward()
            marks.append(mark(is_cuda))
            if number:
                seconds[name].forward.append(between(marks[0], marks[1]))
                seconds[name].backward.append(between(marks[1], marks[2]))
                seconds[name].both.append(between(marks[0], marks[2]))
    return seconds


Mark = float | torch.cuda.Event


def mark(is_cuda: bool) -> Mark:
    """This moment on the CPU, or the moment when the GPU has done what was queued."""
    if not is_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def between(start: Mark, end: Mark) -> float:
    """Seconds from one mark to a later one; waits for a GPU."""
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3

"""Time of the forward pass, of the backward pass and of both; and the least time that they could take.

On the CPU, seconds around the calls. On a GPU each pass is captured as a CUDA graph, and the seconds lie between
events around the replays, so that the time it takes to launch kernels from Python does not count. The replays before
the timed ones keep the GPU busy while those are queued. A work that cannot be captured is called instead, between the
same events, and a warning says so: launching then counts.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from lfi_kernels.bench.shapes import Ceilings
from lfi_kernels.interaction_attention.dispatch import ENVIRONMENT_VARIABLE

PER_SAMPLE = 4
"""Results that have the batch first: both outputs, and the gradients of the first two leaves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A computation to be timed: two outputs of some leaves.

    Attributes:
        run: computes the outputs.
        leaves: what gradients are taken of; the first two are [B, ...], the others are shared by the samples.
        constants: further tensors that it reads.
        choice: the value of LFI_KERNELS under which it runs.
        rows: [R], the sample of each row of the second output, where that is not [B, ...].
        is_compared: whether there is a target; without one it is inference, and has no backward pass.
    """

    run: Callable[[], tuple[Tensor, Tensor]]
    leaves: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    choice: str
    rows: Tensor | None = None
    is_compared: bool = True

    def forward(self) -> tuple[Tensor, Tensor]:
        with variable(ENVIRONMENT_VARIABLE, self.choice), torch.set_grad_enabled(self.is_compared):
            return self.run()

    def backward(self, outputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Gradients of the leaves; what the outputs kept for them is gone afterwards."""
        if not self.is_compared:
            return ()
        with variable(ENVIRONMENT_VARIABLE, self.choice):
            return torch.autograd.grad(outputs, self.leaves, upstream)

    def places(self, result: int, picked: Tensor) -> Tensor | None:
        """Return where the samples `picked` lie in result number `result`; None where all samples share it.

        Results are numbered over the outputs, then the gradients.
        """
        if result >= PER_SAMPLE:
            return None
        if result == 1 and self.rows is not None:
            return (self.rows[:, None] == picked).nonzero()[:, 0]
        return picked


def upstream_of(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Random gradients of the outputs, the same at every call: numbers that are all 1 or 0 can run faster."""
    g = torch.Generator(outputs[0].device).manual_seed(1)
    return tuple(torch.randn(each.shape, generator=g, device=each.device, dtype=each.dtype) for each in outputs)


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


class Passes(Protocol):
    """What is timed. A backward pass follows the forward pass whose results it differentiates."""

    def forward(self) -> None: ...
    def backward(self) -> None: ...


class Called:
    """The passes of a work as plain calls."""

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
    """Seconds of each round, by pass."""

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
    """Return the time now on the CPU, or an event of when the GPU will have done what is queued."""
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


COPY_BYTES = 2**30
PRODUCT_SIZE = 8192
_ROUNDS = 20


def measure_ceilings(device: str) -> Ceilings:
    """Measure both rates."""
    source = torch.randn(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    copy = _median_seconds(lambda: target.copy_(source))
    product = _median_seconds(lambda: torch.mm(left, right, out=out))
    return Ceilings(copied=2 * COPY_BYTES / copy, products=2 * PRODUCT_SIZE**3 / product)


def _median_seconds(run: Callable[[], object]) -> float:
    """Return the median seconds of one call, of many that are queued at once."""
    for _ in range(3):
        run()
    marks = [mark(True)]
    for _ in range(_ROUNDS):
        run()
        marks.append(mark(True))
    return statistics.median(between(*pair) for pair in pairwise(marks))

"""Monitoring of a run: time by phase, losses that diverge, and gradient norms that scale the weights of terms."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from lfi_pipeline.core.errors import ConfigError

_REMEMBERED = 100
_ENOUGH = 20
_EXPLODED = 100.0


class LossGuard:
    """Watches the losses and gradients of a run.

    Attributes:
        recent: the last losses, oldest first; a resume goes on with them.
    """

    def __init__(self, recent: Iterable[float] = ()) -> None:
        self.recent = deque(recent, maxlen=_REMEMBERED)

    def check(self, loss: float, gradient_norm: float) -> str | None:
        """Return what is wrong with a step, None if nothing is; such a step must not be taken.

        Args:
            loss: of the step. It must be finite and at most 100 times the median of the last hundred.
            gradient_norm: before clipping. It must be finite.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the norm of the gradient is {gradient_norm} (at a loss of {loss:.4g})"
        if len(self.recent) >= _ENOUGH:
            usual = statistics.median(self.recent)
            if loss > _EXPLODED * usual > 0:
                return f"the loss is {loss:.4g}, where the last {len(self.recent)} had a median of {usual:.4g}"
        self.recent.append(loss)
        return None


WAITING, FORWARD, BACKWARD, OPTIMIZER = "waiting", "forward", "backward", "optimizer"
VALIDATION, CHECKPOINT = "validation", "checkpoint"
PHASES = (WAITING, FORWARD, BACKWARD, OPTIMIZER, VALIDATION, CHECKPOINT)
_STEP = (WAITING, FORWARD, BACKWARD, OPTIMIZER)
_ON_DEVICE = (FORWARD, BACKWARD, OPTIMIZER)
_MOST_PENDING = 1000  # laps whose events are kept before they are read
_BOUND = 0.2  # the share of the step's time from which waiting is worth a word


class EpochClock:
    """Seconds by phase, summed over an epoch.

    On CUDA, forward, backward and optimizer are charged with the time of their kernels, taken by events on the stream.
    Nothing waits for the device, so that host and device keep working at the same time.

    Args:
        device: of the training.
        now: the clock, in seconds.
    """

    def __init__(self, device: torch.device, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._now = now
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def lap(self, phase: str) -> Iterator[None]:
        """Charge the time inside to `phase`, one of `PHASES`; also when it ends in an error."""
        if phase not in self._seconds:
            raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}.")
        if self._cuda is not None and phase in _ON_DEVICE:
            began_at = _mark(self._cuda)
            try:
                yield
            finally:
                self._pending.append((phase, began_at, _mark(self._cuda)))
                if len(self._pending) >= _MOST_PENDING:
                    self._drain()
            return
        began = self._now()
        try:
            yield
        finally:
            self._seconds[phase] += self._now() - began

    def report(self) -> dict[str, float]:
        """Return seconds by phase since the last report, and begin anew."""
        self._drain()
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds

    def _drain(self) -> None:
        """Charge the laps on the device to their phases, after waiting until the last of them has ended."""
        for phase, began, ended in self._pending:
            ended.synchronize()
            self._seconds[phase] += began.elapsed_time(ended) / 1e3
        self._pending.clear()


class StepTimes:
    """Milliseconds of each step; on CUDA taken by events, so that nothing waits for the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._began: float | torch.cuda.Event = 0.0
        self._taken: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._read: list[float] = []

    def start(self) -> None:
        """Mark the start of a step."""
        self._began = time.monotonic() if self._cuda is None else _mark(self._cuda)

    def stop(self) -> None:
        """Mark the end of the step in this process."""
        if isinstance(self._began, float):
            self._read.append((time.monotonic() - self._began) * 1e3)
        elif self._cuda is not None:
            self._taken.append((self._began, _mark(self._cuda)))

    def read(self) -> list[float]:
        """Return the time of each step since the last reading; waits for the device where there are any."""
        for began, ended in self._taken:
            ended.synchronize()
            self._read.append(began.elapsed_time(ended))
        read, self._read, self._taken = self._read, [], []
        return read


def _mark(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def advice(
    seconds: Mapping[str, float], *, workers: int, cpu_count: int, load_seconds: float | None = None, steps: int = 0
) -> str | None:
    """Say what to change when waiting for data takes more than 20 % of the step's time; None when it does not.

    Args:
        seconds: as `EpochClock.report` gives it; validation and checkpoints do not count.
        workers: processes that load data; 0 loads inside the training process.
        cpu_count: cores that the run may use.
        load_seconds: measured time of one worker per batch. Without it, it is taken from the waiting: all of it
            for no worker, and for workers that bound the step, `workers` times the whole step.
        steps: in `seconds`; goes with `load_seconds`.
    """
    waiting = seconds.get(WAITING, 0.0)
    total = math.fsum(seconds.get(phase, 0.0) for phase in _STEP)
    if total <= 0 or waiting <= _BOUND * total:
        return None
    working = total - waiting
    share = f"{waiting / total:.0%} of the step's time"
    if workers == 0:
        cause = f"Loading inside the training process (workers=0) takes {share}."
    else:
        cause = f"Waiting for data takes {share} with {workers} worker{'s' * (workers > 1)}."
    if workers >= cpu_count or cpu_count <= 1:
        return (
            f"{cause} All {cpu_count} cores are in use: take smaller images, pack the cache to zarr on a local disk "
            "(lfi pack), or feed several students from one read (several students)."
        )
    if load_seconds is not None and steps > 0:
        loading = load_seconds * steps
    else:
        loading = waiting if workers == 0 else workers * total
    wanted = math.ceil(loading / working) if working > 0 else cpu_count
    return f"{cause} Try workers={max(workers + 1, min(wanted, cpu_count))} ({cpu_count} cores here)."


EVERY = 20
"""Steps from one measurement to the next."""
SMOOTHING = 0.8
"""What stays of the ratio at a measurement."""
_LARGEST_RATIO = 1e4
"""A term with a smaller gradient than the task's by more than this has nothing to say of this batch."""
MOST_GROWTH = 20
"""A ratio stays below this times its first: of a term that is solved little but noise is left, and weighted up it ruins the run."""


class GradientBalance:
    """Ratios of the reference loss's gradient norm to each term's, by which relative weights are multiplied.

    A measurement holds from the next step on, so that all pieces of a batch, in every process, are weighted alike.
    Without a task the first term takes its place, with weight 1. A ratio grows to `MOST_GROWTH` times its first at most.

    Args:
        terms: whose weight is relative.
        reference: name of the loss that they are measured against: the task, or the first term where there is none.
    """

    def __init__(self, terms: Sequence[str], reference: str) -> None:
        self.reference = reference
        self.terms = tuple(term for term in terms if term != reference)
        self.ratios: dict[str, float] = {}
        self._first: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Whether to measure at `step`."""
        return bool(self.terms) and step % EVERY == 0

    def ratio(self, term: str) -> float:
        """Ratio that `term` has now: 0 before the first measurement, 1 for the reference."""
        return 1.0 if term == self.reference else self.ratios.get(term, 0.0)

    def update(self, squares: Mapping[str, float]) -> None:
        """Update the ratios with a measurement.

        Args:
            squares: by name of the loss, the squared norm of its gradient, summed over the whole batch (any common
                factor cancels). What is not finite, or too small to compare with, leaves the ratio as it was: so does
                the first step of a query head, whose answers do not depend on the image yet.
        """
        task = squares[self.reference]
        for term in self.terms:
            if not (math.isfinite(task) and math.isfinite(squares[term])) or min(task, squares[term]) <= 0:
                continue
            ratio = math.sqrt(task / squares[term])
            if ratio <= _LARGEST_RATIO:
                first = self._first.setdefault(term, ratio)
                smoothed = SMOOTHING * self.ratios.get(term, ratio) + (1 - SMOOTHING) * ratio
                self.ratios[term] = min(smoothed, MOST_GROWTH * first)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {"ratios": dict(self.ratios), "first": dict(self._first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. States of earlier releases are the ratios alone: they count as the first."""
        ratios = state.get("ratios", state)
        self.ratios = {term: float(ratios[term]) for term in self.terms if term in ratios}
        first = state.get("first", self.ratios)
        self._first = {term: float(first[term]) for term in self.terms if term in first}


def gradient_squares(losses: Mapping[str, Tensor], feature: Tensor, pooled: Tensor) -> dict[str, Tensor]:
    """Return the squared norm of each loss's gradient at the tensor that `feature` was taken from, fp32 scalars.

    The graph is kept, and no parameter's gradient is touched.

    Args:
        losses: scalars.
        feature: patch tokens or feature map of a tap.
        pooled: what the backbone made of them in the end.

    Raises:
        ConfigError: the backbone's result is not made from its features.
    """
    edge = feature_edge(feature, nodes_of(pooled))
    if edge is None:
        raise ConfigError(
            "Weights relative to the task's gradient need a backbone whose result is made from the features of its "
            "taps; those of this one are computed on the side. Give every term a constant weight, or choose another "
            "student."
        )
    squares = {}
    for name, loss in losses.items():
        square = torch.zeros((), device=loss.device)
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, edge, retain_graph=True, allow_unused=True)
            if gradient is not None:
                square = gradient.float().square().sum()
        squares[name] = square
    return squares


def nodes_of(tensor: Tensor) -> set[Node]:
    """Return every operation that `tensor` was made by; leaves are left out."""
    nodes: set[Node] = set()
    waiting = [get_gradient_edge(tensor).node]
    while waiting:
        node = waiting.pop()
        if node not in nodes and "AccumulateGrad" not in node.name():
            nodes.add(node)
            waiting.extend(before for before, _ in node.next_functions if before is not None)
    return nodes


def feature_edge(feature: Tensor, reached: set[Node]) -> GradientEdge | None:
    """Return the nearest tensor behind `feature` that was made by an operation of `reached`; None where there is none.

    Args:
        feature: a feature map as the backbone gives it, or what was rearranged of it.
        reached: `nodes_of` the backbone's result.
    """
    waiting = deque([get_gradient_edge(feature)])
    seen: set[Node] = set()
    while waiting:
        edge = waiting.popleft()
        if edge.node in reached:
            return edge
        for node, number in edge.node.next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                waiting.append(GradientEdge(node, number))
    return None

"""Where an epoch's time went, and a guard that stops a run whose loss goes to ruin before its weights do."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

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

    On CUDA, forward, backward and optimizer are charged with the time of their kernels, taken by events on the stream:
    nothing waits for the device, which would cost the overlap that a step lives of.

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
        """Charge the laps on the device; the last of them is waited for."""
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
        """A step begins."""
        self._began = time.monotonic() if self._cuda is None else _mark(self._cuda)

    def stop(self) -> None:
        """The step is over, for this process."""
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
        found = f"Loading inside the training process (workers=0) takes {share}."
    else:
        found = f"Waiting for data takes {share} with {workers} worker{'s' * (workers > 1)}."
    if workers >= cpu_count or cpu_count <= 1:
        return (
            f"{found} All {cpu_count} cores are in use: take smaller images, pack the cache to zarr on a local disk "
            "(lfi pack), or feed several students from one read (several students)."
        )
    if load_seconds is not None and steps > 0:
        loading = load_seconds * steps
    else:
        loading = waiting if workers == 0 else workers * total
    wanted = math.ceil(loading / working) if working > 0 else cpu_count
    return f"{found} Try workers={max(workers + 1, min(wanted, cpu_count))} ({cpu_count} cores here)."

"""What an objective adds to a step of training: forward, backward and optimizer on a batch in memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, require
from lfi_pipeline.benchmarks.photo_cache import MAPS_SHAPE, photo_cache
from lfi_pipeline.benchmarks.timing import median_ratio, rounds_of
from lfi_pipeline.benchmarks.training_runs import cut_for, make_run, one_batch, step
from lfi_pipeline.students import QueryConfig, StudentConfig
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.active import ActiveRun
from lfi_pipeline.training.clock import BACKWARD, FORWARD, OPTIMIZER, EpochClock
from lfi_pipeline.training.config import StreamConfig
from lfi_pipeline.training.data import Batch

TEXT, LEARNED = "lfi", "lfi, learned"
CASES = {
    "none": ("none", "text"),
    TEXT: ("lfi", "text"),
    LEARNED: ("lfi", "learned"),
    "embedding": ("embedding", "text"),
}
"""Objective and mode of the queries, by case."""

TARGETS = "targets cut"


@dataclass(slots=True)
class _Case:
    """One run, stepped again and again on one batch."""

    run: ActiveRun
    batch: Batch
    codec: str
    clock: EpochClock
    cutting: EpochClock
    phases: dict[str, list[float]] = field(default_factory=dict)
    processor: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        working = time.process_time()
        with self.cutting.lap(FORWARD):
            cut = cut_for(self.run, self.batch, self.codec)
        step(self.run, self.batch, cut, self.clock)
        spent, cutting = self.clock.report(), self.cutting.report()[FORWARD]  # waits for a CUDA device
        self.processor.append(time.process_time() - working)
        for phase, seconds in (
            (TARGETS, cutting),
            *((phase, spent[phase]) for phase in (FORWARD, BACKWARD, OPTIMIZER)),
        ):
            self.phases.setdefault(phase, []).append(seconds)


def bench_step(
    student: StudentConfig,
    *,
    batch_size: int,
    rounds: int,
    device: torch.device,
    maps_shape: tuple[int, ...] = MAPS_SHAPE,
) -> Outcome:
    """Time a step of each case, in turns, and say where its time goes.

    Raises:
        BenchmarkError: queries change what the backbone gives, a target is not a distribution, a step fails.
    """
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        store = photo_cache(Path(scratch), batch_size, maps_shape=maps_shape)
        stream = StreamConfig(targets=store.path, batch_size=batch_size)
        cases = _cases(store, student, stream, device)
        check(cases)
        timed: dict[str, Callable[[], object]] = dict(cases)
        seconds = rounds_of(timed, rounds, name=f"step of {student.name}", warm_up=2)
    size = next(iter(cases.values())).run.learner.student.size
    words = f"{maps_shape[1]} words, {maps_shape[0]} x {maps_shape[2]}x{maps_shape[3]} maps"
    shape = f"{student.name} at {size[0]}x{size[1]}, batch {batch_size}, {words}"
    measured, asked = [], []
    for name, case in cases.items():
        ratio = median_ratio(seconds[name], seconds["none"])
        rows = [("step", statistics.median(seconds[name]) * 1e3, "ms"), ("over none", ratio, "")]
        if device.type == "cpu":
            working = median_ratio(case.processor[-rounds:], cases["none"].processor[-rounds:])
            rows.append(("processor time over none", working, ""))
        rows += [(phase, statistics.median(spent[-rounds:]) * 1e3, "ms") for phase, spent in case.phases.items()]
        measured += [
            Measurement(case=f"{student.name}, {name}", shape=shape, metric=metric, value=value, unit=unit)
            for metric, value, unit in rows
        ]
        if name == TEXT:
            most = 1.05 if device.type == "cuda" else 1.10
            asked.append(Asked(what=f"step of lfi over none, {student.name}", value=ratio, most=most))
    return Outcome(
        benchmark="train",
        checked="queries leave the backbone's output as it is, and targets are distributions",
        measurements=tuple(measured),
        asked=tuple(asked),
        notes=(
            "A step: targets decoded and cut to the crop, forward, backward, clipping and AdamW in fp32, data already "
            "in memory; ratios are medians over rounds in which the objectives take turns.",
            "Processor time does not count what other programs took meanwhile.",
        ),
    )


def _cases(store: TargetStore, student: StudentConfig, stream: StreamConfig, device: torch.device) -> dict[str, _Case]:
    runs = {
        name: make_run(store, student, objective, device=device, stream=stream, queries=QueryConfig(mode=mode))
        for name, (objective, mode) in CASES.items()
    }
    batch = one_batch(store, stream, list(runs.values()), device)
    return {
        name: _Case(run, batch, store.spec.codec.name, EpochClock(device), EpochClock(device))
        for name, run in runs.items()
    }


@torch.no_grad()
def check(cases: dict[str, _Case]) -> None:
    """Compare what the runs give before their first step.

    Raises:
        BenchmarkError: as `bench_step`.
    """
    plain = cases["none"]
    student = plain.run.learner.student.eval()
    images = plain.batch.images[student.size]
    expected = student(images).pooled
    student.train()
    for name, case in cases.items():
        cut = cut_for(case.run, case.batch, case.codec)
        told, _ = case.run.learner.supervise(cut)
        found = case.run.learner.student.eval()(images, told).pooled
        case.run.learner.student.train()
        off = (found - expected).abs().max().item()
        require(off <= 1e-4, f"{name} must leave the backbone's output as it is, it is off by {off:.2g}.")
        for rows in told.targets or () if told is not None else ():
            sums = rows.double().sum(-1)
            off = torch.minimum((sums - 1).abs(), sums.abs()).max().item()
            require(off < 1e-4, f"Rows of targets must sum to 1 or 0, one of {name} is off by {off:.2g}.")
            require(bool((sums > 0.5).any()), f"Targets of {name} must not all be empty.")

"""Several students trained from one read of the images against as many runs, each with a read of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, require
from lfi_pipeline.benchmarks.photo_cache import photo_cache
from lfi_pipeline.benchmarks.photos import SIZE
from lfi_pipeline.benchmarks.timing import median_ratio
from lfi_pipeline.benchmarks.training_runs import make_run, step
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.active import ActiveRun
from lfi_pipeline.training.clock import EpochClock
from lfi_pipeline.training.config import StreamConfig
from lfi_pipeline.training.cut import CutTargets
from lfi_pipeline.training.data import Batch, TargetImages, whole_batch
from lfi_pipeline.training.tickets import Tickets

STUDENTS = 3
TOGETHER, APART = "one read", "a read each"


def bench_students(
    student: StudentConfig, *, steps: int, batch_size: int, workers: Sequence[int], rounds: int, device: torch.device
) -> Outcome:
    """Time `STUDENTS` students, from image files to moved weights, fed from one read and from a read each.

    Raises:
        BenchmarkError: a student becomes another one in company, or a step fails.
    """
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        store = photo_cache(Path(scratch), (steps + 1) * batch_size)
        stream = StreamConfig(targets=store.path, epochs=1, batch_size=batch_size)
        check(store, student, stream, device)
        runs = _runs(store, student, stream, device)
        seconds: dict[tuple[int, str], list[float]] = {(w, case): [] for w in workers for case in (TOGETHER, APART)}
        with tqdm(total=rounds * len(seconds), desc="students", unit="run", leave=False) as bar:
            for number in range(rounds):
                for count in workers:
                    for case in (TOGETHER, APART) if number % 2 else (APART, TOGETHER):
                        groups = [runs] if case == TOGETHER else [[run] for run in runs]
                        taken = sum(feed(group, store, stream, workers=count, device=device) for group in groups)
                        seconds[count, case].append(taken)
                        bar.update()
        reading = _reading(runs, store, stream)
    side = runs[0].learner.student.size[0]
    shape = f"{STUDENTS} x {student.name} at {side} px, {SIZE[1]}x{SIZE[0]} JPEG, batch {batch_size}, {steps} steps"
    measured, asked = [], []
    for count in workers:
        case = f"{student.name} at {side} px, {count} workers"
        images = STUDENTS * steps * batch_size
        ratio = median_ratio(seconds[count, APART], seconds[count, TOGETHER])
        for metric, value, unit in (
            (f"{STUDENTS} from {TOGETHER}", images / median(seconds[count, TOGETHER]), "images/s"),
            (f"{STUDENTS} with {APART}", images / median(seconds[count, APART]), "images/s"),
            ("one read over a read each", ratio, ""),
            ("reading alone, one process", reading, "images/s"),
        ):
            measured.append(Measurement(case=case, shape=shape, metric=metric, value=value, unit=unit))
        asked.append(
            Asked(what=f"images/s of {STUDENTS} from one read over runs apart, {case}", value=ratio, least=1.5)
        )
    return Outcome(
        benchmark="train",
        checked="a student has the same weights whether it is fed alone or in company",
        measurements=tuple(measured),
        asked=tuple(asked),
        notes=(
            "Students: objective lfi; images/s are those of all students together, files read, decoded and cropped; "
            "the clock starts at the first batch. What can be gained is the share of reading and decoding.",
        ),
    )


def feed(
    runs: Sequence[ActiveRun], store: TargetStore, stream: StreamConfig, *, workers: int, device: torch.device
) -> float:
    """Train `runs` for one pass from one read; returns the seconds from the first batch on, which is not counted."""
    batches = _batches(runs, store, stream, workers)
    clock = EpochClock(device)
    next(batches)
    began = time.perf_counter()
    for read in batches:
        batch = read.to(device)
        cut = CutTargets(batch, store.spec.codec.name)  # one for all students, as in training
        for run in runs:
            step(run, batch, cut, clock)
    clock.report()  # waits for a CUDA device
    return time.perf_counter() - began


def _batches(runs: Sequence[ActiveRun], store: TargetStore, stream: StreamConfig, workers: int) -> Iterator[Batch]:
    """Yield what the runs are fed in one pass."""
    reads = frozenset[str]().union(*(run.learner.reads for run in runs))
    images = TargetImages(store, stream, [run.learner.student.size for run in runs], reads)
    tickets = Tickets(store.usable, stream)
    return iter(DataLoader(images, batch_sampler=tickets, collate_fn=whole_batch, num_workers=workers))


def _reading(runs: Sequence[ActiveRun], store: TargetStore, stream: StreamConfig) -> float:
    """Images a second of a pass that trains nothing."""
    batches = _batches(runs, store, stream, 0)
    next(batches)
    began = time.perf_counter()
    images = sum(len(batch) for batch in batches)
    return images / (time.perf_counter() - began)


def check(store: TargetStore, student: StudentConfig, stream: StreamConfig, device: torch.device) -> None:
    """Train one pass in company and alone, and compare the weights of its last student.

    Raises:
        BenchmarkError: they differ.
    """
    states = []
    for group in (_runs(store, student, stream, device), _runs(store, student, stream, device)[:1]):
        feed(group, store, stream, workers=0, device=device)
        states.append(group[-1].learner.state_dict())
    same = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    require(same, "A student's weights must not depend on which others share its read; they do.")


def _runs(store: TargetStore, student: StudentConfig, stream: StreamConfig, device: torch.device) -> list[ActiveRun]:
    return [make_run(store, student, "lfi", device=device, stream=stream) for _ in range(STUDENTS)]

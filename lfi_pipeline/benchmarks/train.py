"""Training: what an objective costs, what the cache saves, what sharing a read saves, what is left in the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from lfi_pipeline.benchmarks.config import TrainBenchConfig
from lfi_pipeline.benchmarks.outcome import Measurement, Outcome
from lfi_pipeline.benchmarks.training_online import bench_online, bench_students
from lfi_pipeline.benchmarks.training_step import bench_parameters, bench_step
from lfi_pipeline.core.device import resolve_device
from lfi_pipeline.students import StudentConfig


def built_students(config: TrainBenchConfig) -> tuple[StudentConfig, ...]:
    """The students that `config` names."""
    return tuple(
        StudentConfig(name=name, image_size=config.image_size, kwargs=config.student_arg) for name in config.students
    )


def bench_train(config: TrainBenchConfig) -> Outcome:
    """Measure the parts that `config` names, each behind its own check.

    Raises:
        BenchmarkError: a check fails.
        LFIError: a student or a teacher that cannot be built.
    """
    outcomes = [outcome for part in config.what for outcome in _PARTS[part](config)]
    load = Measurement(
        case="machine", shape="", metric="load average, 1 minute", value=os.getloadavg()[0], unit="processes"
    )
    return Outcome(
        benchmark="train",
        checked="; ".join(dict.fromkeys(outcome.checked for outcome in outcomes)),
        measurements=(*(each for outcome in outcomes for each in outcome.measurements), load),
        asked=tuple(each for outcome in outcomes for each in outcome.asked),
        notes=tuple(dict.fromkeys(note for outcome in outcomes for note in outcome.notes)),
    )


def _step(config: TrainBenchConfig) -> Iterator[Outcome]:
    for student in built_students(config):
        yield bench_step(
            student,
            batch_size=config.batch_size,
            rounds=config.rounds,
            device=resolve_device(config.device),
            maps_shape=config.maps_shape,
        )


def _online(config: TrainBenchConfig) -> Iterator[Outcome]:
    yield bench_online(
        built_students(config)[-1],
        teacher=config.teacher,
        kind=config.kind,
        layers=config.layers,
        batch_size=config.online_batch,
        rounds=config.online_rounds,
        device=resolve_device(config.device),
    )


def _students(config: TrainBenchConfig) -> Iterator[Outcome]:
    student = built_students(config)[0]
    for size in config.image_sizes:
        yield bench_students(
            student if isinstance(size, str) else replace(student, image_size=size),
            steps=config.steps,
            batch_size=config.batch_size,
            workers=config.workers,
            rounds=config.rounds,
            device=resolve_device(config.device),
        )


def _parameters(config: TrainBenchConfig) -> Iterator[Outcome]:
    yield bench_parameters(built_students(config)[-1])


_PARTS: dict[str, Callable[[TrainBenchConfig], Iterator[Outcome]]] = {
    "step": _step,
    "online": _online,
    "students": _students,
    "parameters": _parameters,
}

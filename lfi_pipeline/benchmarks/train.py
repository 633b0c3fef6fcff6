"""Training: what an objective costs, what the cache saves, what sharing a read saves, what is left in the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from lfi_pipeline.benchmarks.inputs import MAPS_SHAPE
from lfi_pipeline.benchmarks.outcome import Measurement, Outcome
from lfi_pipeline.benchmarks.training_online import bench_online, bench_students
from lfi_pipeline.benchmarks.training_step import bench_parameters, bench_step
from lfi_pipeline.core.device import resolve_device
from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.students import StudentConfig


def _default_students() -> tuple[StudentConfig, ...]:
    return tuple(StudentConfig(name=f"vit_{size}_patch16_224") for size in ("tiny", "small"))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBenchConfig:
    """What to measure.

    Attributes:
        what: some of `PARTS`.
        students: for `step`; the first is that of `students`, the last that of `online` and `parameters`.
        batch_size: images of a step, but for `online`.
        rounds: of which medians count.
        maps_shape: (L, M, gh, gw) of the synthetic targets of `step`.
        teacher: that `online` asks; `NAME:random` needs no weights.
        kind: of its maps.
        layers: at which it is asked.
        online_batch: images of a step of `online`.
        online_rounds: of `online`.
        image_sizes: of `students`; None is the student's own.
        workers: loader processes of `students`, several to compare.
        steps: of one pass of `students`, after the first, which does not count.
        device: where students and teacher run.
    """

    what: tuple[str, ...] = ("step", "online", "students", "parameters")
    students: tuple[StudentConfig, ...] = field(default_factory=_default_students)
    batch_size: int = 8
    rounds: int = 5
    maps_shape: tuple[int, ...] = MAPS_SHAPE
    teacher: str = "coca_ViT-L-14:random"
    kind: str = "relevance"
    layers: int = 1
    online_batch: int = 4
    online_rounds: int = 2
    image_sizes: tuple[int | None, ...] = (None, 64)
    workers: tuple[int, ...] = (0, 2)
    steps: int = 4
    device: str = "auto"

    def __post_init__(self) -> None:
        for part in self.what:
            if part not in PARTS:
                raise UnknownNameError("measurement", part, PARTS)
        for name in ("what", "students", "image_sizes", "workers"):
            if not getattr(self, name):
                raise ConfigError(f"{name} must name at least one, got none.")
        for name in ("batch_size", "rounds", "layers", "online_batch", "online_rounds", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if min(self.workers) < 0:
            raise ConfigError(f"workers must be 0 or more, got {self.workers}.")

    def tiny(self) -> TrainBenchConfig:
        """The same measurements at sizes that take seconds and measure nothing."""
        small = {"depth": 3, "embed_dim": 32, "num_heads": 2}
        students = (StudentConfig(name="vit_tiny_patch16_224", image_size=32, kwargs=small),)
        return replace(
            self,
            students=students,
            batch_size=2,
            rounds=1,
            maps_shape=(2, 3, 4, 4),
            online_batch=2,
            online_rounds=1,
            image_sizes=(None,),
            workers=(0,),
            steps=1,
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
    for student in config.students:
        yield bench_step(
            student,
            batch_size=config.batch_size,
            rounds=config.rounds,
            device=resolve_device(config.device),
            maps_shape=config.maps_shape,
        )


def _online(config: TrainBenchConfig) -> Iterator[Outcome]:
    yield bench_online(
        config.students[-1],
        teacher=config.teacher,
        kind=config.kind,
        layers=config.layers,
        batch_size=config.online_batch,
        rounds=config.online_rounds,
        device=resolve_device(config.device),
    )


def _students(config: TrainBenchConfig) -> Iterator[Outcome]:
    for size in config.image_sizes:
        yield bench_students(
            config.students[0] if size is None else replace(config.students[0], image_size=size),
            steps=config.steps,
            batch_size=config.batch_size,
            workers=config.workers,
            rounds=config.rounds,
            device=resolve_device(config.device),
        )


def _parameters(config: TrainBenchConfig) -> Iterator[Outcome]:
    yield bench_parameters(config.students[-1])


_PARTS: dict[str, Callable[[TrainBenchConfig], Iterator[Outcome]]] = {
    "step": _step,
    "online": _online,
    "students": _students,
    "parameters": _parameters,
}
PARTS = tuple(_PARTS)

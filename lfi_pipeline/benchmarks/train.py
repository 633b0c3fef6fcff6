"""Training: what an objective costs, what the cache saves, what sharing a read saves, what is left in the model."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lfi_pipeline.benchmarks.config import CONTENT_WORDS, TrainBenchConfig
from lfi_pipeline.benchmarks.extraction import KL_TOLERANCE, read
from lfi_pipeline.benchmarks.inputs import SIZE, photo_cache
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, median_ratio, require, rounds_of
from lfi_pipeline.benchmarks.training_step import bench_parameters, bench_step, cut_for, make_run, one_batch, step
from lfi_pipeline.core.runtime import progress_bar, resolve_device
from lfi_pipeline.data.config import Augmentation
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.targets import TargetStore, codec_kl, decode_maps, encode_maps
from lfi_pipeline.teachers import Teacher, load_teacher
from lfi_pipeline.teachers.teacher import normalised_images
from lfi_pipeline.training.config import DataConfig
from lfi_pipeline.training.data import Batch, TargetImages, whole_batch
from lfi_pipeline.training.learner import TOTAL
from lfi_pipeline.training.maps import MapResampler
from lfi_pipeline.training.monitor import EpochClock
from lfi_pipeline.training.sampler import ResumableBatchSampler
from lfi_pipeline.training.trainer import Trainer

_WORDS = 16
_NO_CROP = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
_LOSS_TOLERANCE = 1e-3
_ASKED = 5.0  # of a GPU


def bench_online(
    student: StudentConfig, *, teacher: str, kind: str, layers: int, batch_size: int, rounds: int, device: torch.device
) -> Outcome:
    """Time a step of `lfi` that reads its targets from the cache, and one that lets the teacher make them.

    Raises:
        BenchmarkError: the cache does not hold what the teacher says, or a step's loss depends on where maps come from.
    """
    asker = _Teacher(load_teacher(teacher, device=device), kind, layers, batch_size)
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        store = photo_cache(Path(scratch), batch_size, maps_of=asker.of_files)
        codec = store.spec.codec.name
        data = DataConfig(targets=store.path, batch_size=batch_size, augmentation=_NO_CROP)
        run = make_run(store, student, "lfi", device=device, data=data)
        again = make_run(store, student, "lfi", device=device, data=data)
        batch = one_batch(store, data, [run], device)
        clock, positions = EpochClock(device), store.usable[:batch_size]

        def cached(run: Trainer = run) -> float:
            targets = store.read_many(positions)
            return _step(run, batch, targets.maps, targets.scale, codec, clock)

        def online(run: Trainer = run) -> float:
            return _step(run, batch, *encode_maps(asker.maps(), codec), codec, clock)

        stored = store.read_many(positions)
        off = codec_kl(asker.maps(), decode_maps(stored.maps, stored.scale, codec))
        require(off < KL_TOLERANCE, f"Cached maps must be the teacher's, they differ by {off:.3g} nats.")
        losses = cached(run), online(again)
        same = abs(losses[0] - losses[1]) <= _LOSS_TOLERANCE * abs(losses[0])
        require(same, f"The loss must not depend on where maps come from, got {losses[0]:.6g} and {losses[1]:.6g}.")
        seconds = rounds_of(
            {"cached targets": cached, "teacher online": online}, rounds, name="cached, online", warm_up=0
        )
    ratio = median_ratio(seconds["teacher online"], seconds["cached targets"])
    shape = f"{student.name}, {teacher}, {kind}, {layers} layers, {_WORDS} words, batch {batch_size}"
    measured = []
    for case, taken in seconds.items():
        for metric, value, unit in (
            ("step", median(taken) * 1e3, "ms"),
            ("online over cached", ratio if case == "teacher online" else 1.0, ""),
        ):
            measured.append(
                Measurement(case=f"{student.name}, {case}", shape=shape, metric=metric, value=value, unit=unit)
            )
    what = f"step with the teacher online over cached targets, {student.name}"
    return Outcome(
        benchmark="train",
        checked="the teacher's maps are those of the cache, and give the same loss",
        measurements=tuple(measured),
        asked=(Asked(what=what, value=ratio, least=_ASKED),) if device.type == "cuda" else (),
        notes=(
            f"Online: {teacher} makes {kind} maps of the whole batch in every step, images and captions in memory; "
            "cached: the step reads them from the cache.",
        ),
    )


class _Teacher:
    """A teacher with captions, and the images that it is asked about."""

    def __init__(self, teacher: Teacher, kind: str, layers: int, images: int) -> None:
        self.teacher, self.kind = teacher, kind
        self.layers, self.settings = teacher.layers(kind, layers), teacher.map_settings(kind, centre=CONTENT_WORDS)
        total = len(CONTENT_WORDS)
        captions = (" and ".join(CONTENT_WORDS[(b + i) % total] for i in range(_WORDS)) for b in range(images))
        self.texts = [teacher.encode_text(caption) for caption in captions]
        self.images = torch.empty(0)

    def of_files(self, paths: list[Path]) -> npt.NDArray[np.float32]:
        """Keep the images of these files, normalised; return their maps."""
        self.images = normalised_images(self.teacher, [read(path, self.teacher) for path in paths])
        return self.maps()

    def maps(self) -> npt.NDArray[np.float32]:
        """Return the teacher's maps of the kept images, fp32 [B, L, M, gh, gw]."""
        words = [text.words[:_WORDS] for text in self.texts]
        device_maps: Tensor = self.teacher.interaction_maps(
            self.images, self.texts, words, kind=self.kind, layers=self.layers, settings=self.settings
        ).maps
        maps: npt.NDArray[np.float32] = device_maps.float().cpu().numpy()
        return maps


def _step(
    run: Trainer,
    batch: Batch,
    maps: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float16],
    codec: str,
    clock: EpochClock,
) -> float:
    """Take one step with these maps; returns its loss."""
    device = batch.positions.device
    with_maps = replace(batch, maps=torch.from_numpy(maps).to(device), scale=torch.from_numpy(scale).to(device))
    loss = step(run, with_maps, cut_for(run, with_maps, codec), clock)[TOTAL]
    clock.report()  # waits for a CUDA device
    return loss


STUDENTS = 3
TOGETHER, APART = "one read", "a read each"


def bench_students(
    student: StudentConfig, *, steps: int, batch_size: int, workers: Sequence[int], rounds: int, device: torch.device
) -> Outcome:
    """Time `STUDENTS` students, from image files to moved weights, fed from one read and from a read each.

    Raises:
        BenchmarkError: a student's weights depend on the others that share its read, or a step fails.
    """
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        store = photo_cache(Path(scratch), (steps + 1) * batch_size)
        data = DataConfig(targets=store.path, epochs=1, batch_size=batch_size)
        check(store, student, data, device)
        runs = _runs(store, student, data, device)
        seconds: dict[tuple[int, str], list[float]] = {(w, case): [] for w in workers for case in (TOGETHER, APART)}
        with progress_bar(total=rounds * len(seconds), desc="students", unit="run", leave=False) as bar:
            for number in range(rounds):
                for count in workers:
                    for case in (TOGETHER, APART) if number % 2 else (APART, TOGETHER):
                        groups = [runs] if case == TOGETHER else [[run] for run in runs]
                        taken = sum(feed(group, store, data, workers=count, device=device) for group in groups)
                        seconds[count, case].append(taken)
                        bar.update()
        reading = _reading(runs, store, data)
    side = runs[0].learner.student.size[0]
    shape = f"{STUDENTS} x {student.name} at {side} px, {SIZE[1]}x{SIZE[0]} JPEG, batch {batch_size}, {steps} steps"
    measured, requirements = [], []
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
        requirements.append(
            Asked(what=f"images/s of {STUDENTS} from one read over runs apart, {case}", value=ratio, least=1.5)
        )
    return Outcome(
        benchmark="train",
        checked="a student has the same weights whether it is fed alone or in company",
        measurements=tuple(measured),
        asked=tuple(requirements),
        notes=(
            "Students: objective lfi; images/s are those of all students together, files read, decoded and cropped; "
            "the clock starts at the first batch. What can be gained is the share of reading and decoding.",
        ),
    )


def feed(runs: Sequence[Trainer], store: TargetStore, data: DataConfig, *, workers: int, device: torch.device) -> float:
    """Train `runs` for one pass from one read; returns the seconds from the first batch on, which is not counted."""
    batches = _batches(runs, store, data, workers)
    clock = EpochClock(device)
    next(batches)
    began = time.perf_counter()
    for fed in batches:
        batch = fed.to(device)
        cut = MapResampler(batch, store.spec.codec.name)  # one for all students, as in training
        for run in runs:
            step(run, batch, cut, clock)
    clock.report()  # waits for a CUDA device
    return time.perf_counter() - began


def _batches(runs: Sequence[Trainer], store: TargetStore, data: DataConfig, workers: int) -> Iterator[Batch]:
    """Return the batches of one pass, as the runs are fed with them."""
    reads = frozenset[str]().union(*(run.learner.reads for run in runs))
    images = TargetImages(store, data, [run.learner.student.size for run in runs], reads)
    tickets = ResumableBatchSampler(store.usable, data)
    return iter(DataLoader(images, batch_sampler=tickets, collate_fn=whole_batch, num_workers=workers))


def _reading(runs: Sequence[Trainer], store: TargetStore, data: DataConfig) -> float:
    """Return images per second of a pass that only reads."""
    batches = _batches(runs, store, data, 0)
    next(batches)
    began = time.perf_counter()
    images = sum(len(batch) for batch in batches)
    return images / (time.perf_counter() - began)


def check(store: TargetStore, student: StudentConfig, data: DataConfig, device: torch.device) -> None:
    """Train one student for a pass, alone and with others that share its read, and compare the weights.

    Raises:
        BenchmarkError: they differ.
    """
    states = []
    for group in (_runs(store, student, data, device), _runs(store, student, data, device)[:1]):
        feed(group, store, data, workers=0, device=device)
        states.append(group[-1].learner.state_dict())
    same = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    require(same, "A student's weights must not depend on which others share its read; they do.")


def _runs(store: TargetStore, student: StudentConfig, data: DataConfig, device: torch.device) -> list[Trainer]:
    return [make_run(store, student, "lfi", device=device, data=data) for _ in range(STUDENTS)]


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


def _train_step(config: TrainBenchConfig) -> Iterator[Outcome]:
    for student in built_students(config):
        yield bench_step(
            student,
            batch_size=config.batch_size,
            rounds=config.rounds,
            device=resolve_device(config.device),
            maps_shape=config.maps_shape,
            precision=config.precision,
            compiled=config.compile,
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
    "step": _train_step,
    "online": _online,
    "students": _students,
    "parameters": _parameters,
}

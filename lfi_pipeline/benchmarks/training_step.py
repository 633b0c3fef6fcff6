"""Steps of training on synthetic photographs and maps: time by objective, parameters, and trials of planned runs."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lfi_pipeline.benchmarks.inputs import MAPS_SHAPE, drawn_maps, maps_spec, payload_of, photo_cache, write_targets
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, extra_memory, median_ratio, require, rounds_of
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.runtime import OperationCounter
from lfi_pipeline.exporting.check import plain_model
from lfi_pipeline.students import QueryConfig, StudentConfig
from lfi_pipeline.students.backbone import build_backbone
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import DataConfig, TrainConfig
from lfi_pipeline.training.data import IMAGE_EMBEDDING, MAPS, Batch, TargetImages
from lfi_pipeline.training.learner import TOTAL
from lfi_pipeline.training.maps import MapResampler
from lfi_pipeline.training.monitor import BACKWARD, FORWARD, OPTIMIZER, EpochClock
from lfi_pipeline.training.surroundings import make_accelerator
from lfi_pipeline.training.trainer import MicroBatch, Trainer

_STEPS = 1_000_000  # of the schedule: the rate does not change while timing


def make_run(
    store: TargetStore,
    student: StudentConfig,
    objective: str,
    *,
    device: torch.device,
    data: DataConfig,
    queries: QueryConfig | None = None,
    precision: str = "fp32",
    head: str = "linear",
) -> Trainer:
    """Return a run at its first step, multi-label over the cache's classes; nothing of it is written."""
    common: dict[str, Any] = {"data": data, "student": student, "objective": objective, "precision": precision}
    config = TrainConfig(head=head, queries=queries or QueryConfig(), **common)
    return run_of(config, store, device=device)


def run_of(config: TrainConfig, store: TargetStore, *, device: torch.device) -> Trainer:
    """Return a run as `make_run` does, from a whole configuration."""
    return Trainer(
        config,
        Path(store.path) / "no run",
        store=store,
        task="multi-label",
        accelerator=make_accelerator(device.type),
        device=device,
        steps=_STEPS,
        steps_per_epoch=1,
        keep_every=0,
    )


def one_batch(store: TargetStore, data: DataConfig, runs: Sequence[Trainer], device: torch.device) -> Batch:
    """Return the first `batch_size` samples, with every target, on `device`."""
    sizes = [run.learner.student.size for run in runs]
    images = TargetImages(store, data, sizes, frozenset({MAPS, IMAGE_EMBEDDING}))
    return images.__getitems__([(0, int(position)) for position in store.usable[: data.batch_size]]).to(device)


def cut_for(run: Trainer, batch: Batch, codec: str) -> MapResampler | None:
    """Decode the maps of `batch` and cut them for the taps of the run's student; None for a run without maps."""
    if MAPS not in run.learner.reads:
        return None
    cut = MapResampler(batch, codec)
    for tap in run.learner.student.taps:
        cut.on(tap.grid)
    return cut


def step(run: Trainer, batch: Batch, cut: MapResampler | None, clock: EpochClock) -> dict[str, float]:
    """Take one step on the whole batch.

    Raises:
        BenchmarkError: the step failed.
    """
    losses = run.train_step([MicroBatch(batch, cut, 1.0)], clock)
    finite = bool(np.isfinite(losses[TOTAL]))
    require(finite and run.failure is None, f"A step must succeed, got losses {losses} ({run.failure}).")
    return losses


OBJECTIVES = ("none", "lfi", "embedding")
QUERY_HEAD = "lfi, query head"  # what a run has that names no other; the cases of `OBJECTIVES` have the linear head

TARGETS = "targets cut"
BARE = "bare timm loop"


@dataclass(slots=True)
class _Case:
    """One run, stepped again and again on one batch."""

    run: Trainer
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


class _Bare:
    """A loop as one writes it with timm alone: its model with its head, the same batch, precision, clipping and AdamW."""

    def __init__(self, like: Trainer, student: StudentConfig, batch: Batch, *, compiled: bool) -> None:
        self.config, self.labels = like.config, batch.labels
        self.images = batch.images[like.learner.student.size]
        self.mean, self.std = like.learner.student.mean, like.learner.student.std
        backbone = build_backbone(student)
        backbone.reset_classifier(batch.labels.shape[1])
        self.model: nn.Module = backbone.to(self.images.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.config.optimizer.lr, fused=True)
        self.phases: dict[str, list[float]] = {}
        self.processor: list[float] = []
        if compiled:
            self.model.compile(dynamic=False)

    def __call__(self) -> None:
        working, device = time.process_time(), self.images.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.model((self.images.float() - self.mean) / self.std)
        F.binary_cross_entropy_with_logits(logits.float(), self.labels).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.processor.append(time.process_time() - working)


def bench_step(
    student: StudentConfig,
    *,
    batch_size: int,
    rounds: int,
    device: torch.device,
    maps_shape: tuple[int, ...] = MAPS_SHAPE,
    precision: str = "fp32",
    compiled: bool = False,
) -> Outcome:
    """Time a step of each case, in turns, and say where its time goes.

    Raises:
        BenchmarkError: queries change what the backbone gives, a target is not a distribution, a step fails.
    """
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        store = photo_cache(Path(scratch), batch_size, maps_shape=maps_shape)
        data = DataConfig(targets=store.path, batch_size=batch_size)
        runs = _cases(store, student, data, device, precision)
        check(runs)
        none = runs["none"]
        cases: dict[str, _Case | _Bare] = {**runs, BARE: _Bare(none.run, student, none.batch, compiled=compiled)}
        for trained in runs.values() if compiled else ():
            trained.run.learner.student.compile_parts()
        seconds = rounds_of(cases, rounds, name=f"step of {student.name}", warm_up=2)
        memory = {name: extra_memory(case, device) for name, case in cases.items()}
    size = none.run.learner.student.size
    words = f"{maps_shape[1]} words, {maps_shape[0]} x {maps_shape[2]}x{maps_shape[3]} maps"
    how = precision + ", compiled" * compiled
    shape = f"{student.name} at {size[0]}x{size[1]}, batch {batch_size}, {words}, {how}"
    measured, requirements = [], []
    for name, case in cases.items():
        ratio = median_ratio(seconds[name], seconds["none"])
        over_bare = median_ratio(seconds[name], seconds[BARE])
        rows = [("step", statistics.median(seconds[name]) * 1e3, "ms"), ("over none", ratio, "")]
        rows += [(f"over a {BARE}", over_bare, "")]
        rows += [("peak extra memory", peak, "MiB")] if (peak := memory[name]) is not None else []
        if device.type == "cpu":
            working = median_ratio(case.processor[-rounds:], cases["none"].processor[-rounds:])
            rows.append(("processor time over none", working, ""))
        rows += [(phase, statistics.median(spent[-rounds:]) * 1e3, "ms") for phase, spent in case.phases.items()]
        measured += [
            Measurement(case=f"{student.name}, {name}", shape=shape, metric=metric, value=value, unit=unit)
            for metric, value, unit in rows
        ]
        if name == "lfi":
            limits = (1.04, 1.05) if device.type == "cuda" else (1.10,)
            values = zip(("none", f"a {BARE}"), (ratio, over_bare), limits, strict=False)
            requirements += [Asked(what=f"step of lfi over {x}, {student.name}", value=v, most=m) for x, v, m in values]
    return Outcome(
        benchmark="train",
        checked="queries leave the backbone's output as it is, and targets are distributions",
        measurements=tuple(measured),
        asked=tuple(requirements),
        notes=(
            "A step: targets decoded and cut to the crop, forward, backward, clipping and AdamW, data already in memory; "
            "ratios are medians over rounds in which the cases take turns. Heads are linear; the query head, a run's "
            "default, has a query for each class and a map for each word that names one. A bare timm loop: the model "
            "with its head, binary cross-entropy, the same clipping and optimizer.",
            "Processor time does not count what other programs took meanwhile.",
        ),
    )


def _cases(
    store: TargetStore, student: StudentConfig, data: DataConfig, device: torch.device, precision: str
) -> dict[str, _Case]:
    runs = {
        name: make_run(store, student, objective, device=device, data=data, precision=precision, head=head)
        for name, objective, head in (*((each, each, "linear") for each in OBJECTIVES), (QUERY_HEAD, "lfi", "queries"))
    }
    batch = one_batch(store, data, list(runs.values()), device)
    return {
        name: _Case(run, batch, store.spec.codec.name, EpochClock(device), EpochClock(device))
        for name, run in runs.items()
    }


@torch.no_grad()
def check(cases: dict[str, _Case]) -> None:
    """Check the pooled features and the targets of the runs before their first step.

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
        supervision, _ = case.run.learner.supervise(cut)
        pooled = case.run.learner.student.eval()(images, supervision).pooled
        case.run.learner.student.train()
        off = (pooled - expected).abs().max().item()
        require(off <= 1e-4, f"{name} must leave the backbone's output as it is, it is off by {off:.2g}.")
        for rows in supervision.targets or () if supervision is not None else ():
            sums = rows.double().sum(-1)
            off = torch.minimum((sums - 1).abs(), sums.abs()).max().item()
            require(off < 1e-4, f"Rows of targets must sum to 1 or 0, one of {name} is off by {off:.2g}.")
            require(bool((sums > 0.5).any()), f"Targets of {name} must not all be empty.")


_WIDTH = 768  # of the text embeddings of a ViT-L/14
_MOST = 3.0


def bench_parameters(student: StudentConfig) -> Outcome:
    """Count what each objective adds to the backbone, and what the exported model has beyond backbone and head.

    Raises:
        BenchmarkError: the parts do not add up to what the optimizer is given.
    """
    measured, requirements = [], []
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        store = _cache(Path(scratch))
        for objective in OBJECTIVES[1:]:
            run = make_run(store, student, objective, device=torch.device("cpu"), data=DataConfig(targets=store.path))
            trained, counts = run.learner.student, run.learner.parameter_counts()
            optimized = sum(p.numel() for group in run.optimizer.param_groups for p in group["params"])
            parts = counts["backbone"] + counts["head"] + counts["queries"] + counts["terms"]
            require(
                parts == optimized, f"The parts must add up to {optimized:,} parameters, got {parts:,} ({objective})."
            )
            plain = plain_model(trained)
            exported = sum(p.numel() for p in plain.model.parameters())
            head = sum(p.numel() for p in trained.head.parameters()) if trained.head and plain.head == "inside" else 0
            added = counts["queries"] + counts["terms"]
            share, left = 100 * added / counts["backbone"], exported - counts["backbone"] - head
            for metric, value, unit in (
                ("added in training", added, "parameters"),
                ("share of the backbone", share, "%"),
                ("left in the exported model", left, "parameters"),
            ):
                case = f"{student.name}, {objective}"
                measured.append(Measurement(case=case, shape=f"E {_WIDTH}", metric=metric, value=value, unit=unit))
            if objective == "lfi":
                what = f"% of {student.name} that lfi adds in training"
                requirements.append(Asked(what=what, value=share, most=_MOST))
                requirements.append(Asked(what=f"parameters left in the exported {student.name}", value=left, most=0))
    return Outcome(
        benchmark="train",
        checked="parts add up to what the optimizer is given",
        measurements=tuple(measured),
        asked=tuple(requirements),
        notes=(f"Text embeddings of {_WIDTH} dimensions, as a ViT-L/14 has. Exported: the plain timm model.",),
    )


def _cache(root: Path) -> TargetStore:
    spec = maps_spec(samples=4, maps_shape=(4, 2, 4, 4), embedding_dim=_WIDTH)
    write_targets(root / "targets", spec, lambda positions: payload_of(spec, drawn_maps(spec, positions)))
    return TargetStore.open(root / "targets", data_root=root)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTrial:
    """Result of `time_training`, or of `recipes.hours.time_detection`.

    Attributes:
        student: name of the model.
        size: pixels of its input, (height, width).
        objective: of the run; of a detector's fine-tuning, `detection`.
        precision: of the run.
        device: where it ran.
        batch_size: images of a step.
        seconds: per image, the median of the steps; the images are in memory.
        operations: floating-point operations of a step per image, forward and backward.
        parameters: that are trained.
    """

    student: str
    size: tuple[int, int]
    objective: str
    precision: str
    device: str
    batch_size: int
    seconds: float
    operations: float
    parameters: int


def time_training(
    config: TrainConfig, *, device: torch.device, batch_size: int, steps: int = 3, maps_shape: tuple[int, int, int, int]
) -> StepTrial:
    """Take a few steps as `config` says, with random weights and 80 classes; nothing is left on disk.

    Reading, decoding and augmenting images is not timed: loader processes do it beside the steps.

    Args:
        config: the run; its cache, augmentation and count of epochs do not matter.
        device: where to step.
        batch_size: images of a step here.
        steps: that are timed, after one that is not.
        maps_shape: (layers, words, rows, columns) of the targets.

    Raises:
        LFIError: a student that cannot be built, or `batch_size` or `steps` below 1.
    """
    if batch_size < 1 or steps < 1:
        raise ConfigError(f"batch_size and steps must be 1 or more, got {batch_size} and {steps}.")
    with tempfile.TemporaryDirectory(prefix="lfi-plan-") as scratch:
        store = photo_cache(Path(scratch), max(2, batch_size), maps_shape=maps_shape)
        data = replace(config.data, targets=store.path, data_root=None, hold_out=(), maps="teacher", words=None)
        data = replace(data, batch_size=batch_size)
        student = replace(config.student, pretrained=False)
        trial = replace(config, data=data, student=student, grad_accum_steps=1, task="multi-label")
        run = run_of(trial, store, device=device)
        batch = one_batch(store, data, [run], device)
        clock = EpochClock(device)

        def once() -> None:
            step(run, batch, cut_for(run, batch, store.spec.codec.name), clock)
            clock.report()  # waits for a CUDA device

        operations, seconds = counted_and_timed(once, steps)
    return StepTrial(
        student=config.student.name,
        size=run.learner.student.size,
        objective=config.objective,
        precision=config.precision,
        device=str(device),
        batch_size=batch_size,
        seconds=seconds / batch_size,
        operations=operations / batch_size,
        parameters=sum(each.numel() for each in run.learner.parameters() if each.requires_grad),
    )


def counted_and_timed(once: Callable[[], None], steps: int) -> tuple[int, float]:
    """Return operations of a step, and the median seconds of `steps` more; `once` waits for a CUDA device."""
    with OperationCounter() as counter:
        once()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
    return counter.total, statistics.median(seconds)

"""What a recipe takes: bytes and hours of this machine, measured, and hours of a named GPU, estimated.

Measured: a few images through the teacher (`teachers.estimate`) and a few steps of each student
(`benchmarks.training_step`) and of each detector that the protocol detection fine-tunes, all with random weights, which
take the same time as trained ones. Estimated: the same operations, as counted there, divided by what a GPU is assumed to
sustain. The two say nothing of each other. Of the protocols only detection's fine-tuning is counted: the others, and the
scoring of detectors, are forward passes over one split, of the convergence of curves none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lfi_pipeline.benchmarks.training_step import StepTrial, counted_and_timed, time_training
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.runtime import resolve_device
from lfi_pipeline.data import load_manifest
from lfi_pipeline.evaluation.config import DetectionConfig, evaluation_configs
from lfi_pipeline.evaluation.detection.finetuning import descend, losses_of, make_optimizer
from lfi_pipeline.evaluation.detection.model import build_detector, regions_of
from lfi_pipeline.recipes.commands import Place, Prepared, scored_by
from lfi_pipeline.recipes.recipe import Recipe, Splits
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.students.backbone import build_backbone
from lfi_pipeline.teachers.config import ExtractConfig, PlanConfig
from lfi_pipeline.teachers.estimate import Estimate, estimate
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.sampler import epochs_for
from lfi_pipeline.training.sweep import PlannedRun

EMBEDDED = "scenes-coca"
_GRID = 16  # cells a side of the maps in a trial step, as of a ViT-L/14 at 224 pixels
_WORDS = 16
DETECTION = "detection"
_SMALL = 256  # pixels a side: of smaller images two go through a trial on a CPU, since batch norm needs several values


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU whose hours are estimated from its data sheet, not measured.

    Attributes:
        name: of it.
        peak: operations a second in bf16, dense, as its maker's data sheet says.
        sustained: share of `peak` that is assumed to be reached; models as small as these reach little of it.
    """

    name: str = "NVIDIA A100"
    peak: float = 312e12
    sustained: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Hours:
    """Hours of one device.

    Attributes:
        extraction: of all caches.
        training: of all students, with their scores after every epoch.
        detection: of all fine-tunings of detectors.
    """

    extraction: float
    training: float
    detection: float = 0.0

    @property
    def total(self) -> float:
        """All hours together."""
        return self.extraction + self.training + self.detection


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuning:
    """Fine-tunings of one detector on one schedule.

    Attributes:
        trial: of its step.
        runs: how many backbones are fine-tuned.
        iterations: steps of each.
        batch_size: images of a step.
    """

    trial: StepTrial
    runs: int
    iterations: int
    batch_size: int

    @property
    def images(self) -> int:
        """Images that go forward and back, of all fine-tunings."""
        return self.runs * self.iterations * self.batch_size


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipePlan:
    """What a recipe will take; of the protocols, detection's fine-tuning alone is counted.

    Attributes:
        extraction: `lfi plan` of the training split, teacher with random weights.
        steps: a trial of each student.
        runs: how many students are trained.
        here: hours of this machine for these images.
        gpu: which device the estimates are for.
        estimated: its hours for these images; None with the embedded teacher, or where operations could not be counted.
        published: the same for the data set as published; None where its size is not known.
        on_cpu: whether `here` are hours of a CPU.
        detectors: fine-tunings of the protocol detection, each kind once.
        uncounted: protocols of the recipe that are not counted.
    """

    extraction: Estimate
    steps: tuple[StepTrial, ...]
    runs: int
    here: Hours
    gpu: Gpu
    estimated: Hours | None
    published: Hours | None
    on_cpu: bool
    detectors: tuple[FineTuning, ...]
    uncounted: tuple[str, ...]


def plan_recipe(prepared: Prepared) -> RecipePlan:
    """Try a few images and a few steps on this machine, and say what the recipe will take.

    Raises:
        LFIError: as `estimate`, `time_training` and `time_detection`.
    """
    recipe, place, splits, runs = prepared.recipe, prepared.place, prepared.splits, prepared.runs
    device = resolve_device(place.device)
    on_cpu = device.type == "cpu"
    words = int(recipe.extract.get("words", _WORDS))
    extraction = estimate(
        PlanConfig(
            extract=_extract_config(recipe, place, splits, words, batch_size=1 if on_cpu else 32),
            out=place.shards,
            batches=1 if on_cpu else 3,
            students=len(runs),
            epochs=max(run.config.data.epochs for run in runs),
        )
    )
    trials = {
        kind: time_training(
            config,
            device=device,
            batch_size=2 if on_cpu else config.data.batch_size // config.grad_accum_steps,
            steps=1 if on_cpu else 5,
            maps_shape=(1, words, _GRID, _GRID),
        )
        for kind, config in _different_steps(runs).items()
    }
    detectors = _detectors(prepared, {kind: trial.size for kind, trial in trials.items()}, device)
    passes = _passes(prepared, prepared.images[splits.train], len(prepared.val))
    gpu = Gpu()
    operations = None if recipe.teacher == EMBEDDED else extraction.trial.operations  # far too small to fill a GPU
    rate = gpu.peak * gpu.sustained
    seconds = {kind: trial.seconds for kind, trial in trials.items()}
    ideal = {kind: trial.operations / rate for kind, trial in trials.items()}
    estimated = published = None
    if operations is not None:
        tuning = sum(each.images * each.trial.operations / rate for each in detectors) / 3600
        estimated = Hours(
            extraction=operations / rate * prepared.extracted / 3600,
            training=_training(passes, ideal),
            detection=tuning,
        )
        if splits.published and not recipe.most_images:
            published = Hours(
                extraction=operations / rate * _published_images(prepared) / 3600,
                training=_training(_passes(prepared, splits.published, splits.published_val), ideal),
                detection=tuning,  # a budget of steps, however many images there are
            )
    return RecipePlan(
        extraction=extraction,
        steps=tuple(trials.values()),
        runs=len(runs),
        here=Hours(
            extraction=extraction.trial.seconds * prepared.extracted / 3600,
            training=_training(passes, seconds),
            detection=sum(each.images * each.trial.seconds for each in detectors) / 3600,
        ),
        gpu=gpu,
        estimated=estimated,
        published=published,
        on_cpu=on_cpu,
        detectors=detectors,
        uncounted=tuple(dict.fromkeys(each.protocol for each in recipe.evaluate if each.protocol != DETECTION)),
    )


def _detectors(
    prepared: Prepared, sizes: Mapping[str, tuple[int, int]], device: torch.device
) -> tuple[FineTuning, ...]:
    """Try each detector that the recipe fine-tunes; `sizes` is kind of run -> pixels that its student sees."""
    made = []
    for evaluation in prepared.recipe.evaluate:
        if evaluation.protocol != DETECTION:
            continue
        options = {name.replace("-", "_"): value for name, value in evaluation.options.items()}
        config: DetectionConfig = evaluation_configs([DETECTION], options)[1][DETECTION]
        kinds: dict[str, list[PlannedRun]] = {}
        for run in scored_by(evaluation, prepared.runs):
            kinds.setdefault(_kind(run.config), []).append(run)
        for kind, runs in kinds.items():
            size = max(sizes[kind])
            few = 4 if device.type != "cpu" else 2 if (config.image_size or size) < _SMALL else 1
            trial = time_detection(
                runs[0].config.student,
                config,
                size=size,
                classes=len(prepared.train.classes),
                device=device,
                batch_size=min(config.batch_size, few),
            )
            made.append(
                FineTuning(trial=trial, runs=len(runs), iterations=config.iterations, batch_size=config.batch_size)
            )
    return tuple(made)


def time_detection(
    student: StudentConfig,
    config: DetectionConfig,
    *,
    size: int,
    classes: int,
    device: torch.device,
    batch_size: int,
    steps: int = 1,
) -> StepTrial:
    """Take a few steps of a detector's fine-tuning on drawn images, with random weights; nothing is left on disk.

    An image has as many objects as the mask head takes at most, a quarter of the regions: so the count does not depend
    on what an untrained detector proposes, and is an upper end.

    Args:
        student: whose backbone it is.
        config: of the protocol.
        size: pixels a side of the images, where `config` names none.
        classes: of objects.
        device: where to step.
        batch_size: images of a step here.
        steps: that are timed, after one that is not.

    Raises:
        ConfigError: the backbone cannot take this size, or `batch_size` or `steps` is below 1.
    """
    if batch_size < 1 or steps < 1:
        raise ConfigError(f"batch_size and steps must be 1 or more, got {batch_size} and {steps}.")
    size, classes = config.image_size or size, 1 if config.class_agnostic else classes
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        backbone = build_backbone(replace(student, pretrained=False))
        detector = build_detector(backbone, classes=classes, size=size, width=config.detection_width).to(device).train()
        optimizer = make_optimizer(detector, config.lr)
        images = [torch.rand(3, size, size, device=device) for _ in range(batch_size)]
        target = _objects(regions_of(size) // 4, size, device)

        def once() -> None:
            losses = losses_of(detector, images, [target] * batch_size)
            descend(detector, optimizer, torch.stack(list(losses.values())).sum())
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        operations, seconds = counted_and_timed(once, steps)
    return StepTrial(
        student=student.name,
        size=(size, size),
        objective="detection",
        precision="bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32",
        device=str(device),
        batch_size=batch_size,
        seconds=seconds / batch_size,
        operations=operations / batch_size,
        parameters=sum(each.numel() for each in detector.parameters()),
    )


def _objects(count: int, size: int, device: torch.device) -> dict[str, Tensor]:
    """Return `count` square objects on a grid over an image, as torchvision's detectors are trained on."""
    across = math.ceil(math.sqrt(count))
    cell = size / across
    corners = [(column * cell, row * cell) for row in range(across) for column in range(across)][:count]
    boxes = torch.tensor([(x, y, x + cell, y + cell) for x, y in corners], device=device)
    masks = torch.zeros(count, size, size, dtype=torch.uint8, device=device)
    for mask, (x, y) in zip(masks, corners, strict=True):
        mask[int(y) : math.ceil(y + cell), int(x) : math.ceil(x + cell)] = 1
    return {"boxes": boxes, "labels": torch.ones(count, dtype=torch.int64, device=device), "masks": masks}


def _passes(prepared: Prepared, train: int, val: int) -> list[tuple[str, float]]:
    """Return the kind of each run, and the images that go forward and back through it, those of its scores included.

    Args:
        prepared: the recipe.
        train: images of the training cache; domains share them as they do in the data at hand.
        val: images that are scored after every epoch. A forward pass is about a third of a step.
    """
    domains = Counter(sample.domain for sample in prepared.train.samples)
    passes = []
    for run in prepared.runs:
        data = run.config.data
        left_out = sum(domains[domain] for domain in data.hold_out)
        images = train * (1 - left_out / len(prepared.train))
        epochs = data.epochs
        if prepared.recipe.steps:  # a budget: epochs shrink as images grow
            epochs = epochs_for(prepared.recipe.steps, round(images), data.batch_size)
        passes.append((_kind(run.config), epochs * (images + val / 3)))
    return passes


def _training(passes: Sequence[tuple[str, float]], seconds: Mapping[str, float]) -> float:
    return sum(images * seconds[kind] for kind, images in passes) / 3600


def _published_images(prepared: Prepared) -> float:
    """Return the images of all caches, as `Prepared.extracted`, for the data set at its published size."""
    splits = prepared.splits
    others = sum(prepared.images[name] for name in prepared.place.zero_shot)
    if splits.val != splits.train:
        others += splits.published_val
    return splits.published + others / len(prepared.recipe.views)


def _extract_config(recipe: Recipe, place: Place, splits: Splits, words: int, *, batch_size: int) -> ExtractConfig:
    teacher = recipe.teacher or load_manifest(recipe.dataset).teacher
    if teacher != EMBEDDED:
        teacher = teacher.partition(":")[0] + ":random"
    options = {name: value for name, value in recipe.extract.items() if name not in ("layers", "views", "batch_size")}
    return ExtractConfig(
        dataset=recipe.dataset,
        data_root=place.data_root,
        split=splits.train,
        teacher=teacher,
        views=recipe.views,
        batch_size=batch_size,
        device=place.device,
        **{**options, "words": words},
    )


def _different_steps(runs: Sequence[PlannedRun]) -> dict[str, TrainConfig]:
    """One run for each kind of step; of objectives, lfi stands for all: it costs the most by a little."""
    return {_kind(run.config): replace(run.config, objective="lfi", weights={}) for run in runs}


def _kind(config: TrainConfig) -> str:
    return repr((config.student, config.precision, config.data.batch_size))

"""What a recipe takes: bytes and hours of this machine, measured, and hours of a named GPU, estimated.

Measured: a few images through the teacher (`teachers.estimate`) and a few steps of each student
(`benchmarks.training_step`), both with random weights, which take the same time as trained ones. Estimated: the same
operations, as counted there, divided by what a GPU is assumed to sustain. The two say nothing of each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lfi_pipeline.benchmarks.training_step import StepTrial, time_training
from lfi_pipeline.core.runtime import resolve_device
from lfi_pipeline.data import load_manifest
from lfi_pipeline.recipes.commands import Place, Prepared
from lfi_pipeline.recipes.recipe import Recipe, Splits
from lfi_pipeline.teachers.config import ExtractConfig, PlanConfig
from lfi_pipeline.teachers.estimate import Estimate, estimate
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.sweep import PlannedRun

EMBEDDED = "scenes-coca"
_GRID = 16  # cells a side of the maps in a trial step, as of a ViT-L/14 at 224 pixels
_WORDS = 16


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
    """

    extraction: float
    training: float

    @property
    def total(self) -> float:
        """Hours of extraction and training together."""
        return self.extraction + self.training


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipePlan:
    """What a recipe will take; protocols are not counted.

    Attributes:
        extraction: `lfi plan` of the training split, teacher with random weights.
        steps: a trial of each student.
        runs: how many students are trained.
        here: hours of this machine for these images.
        gpu: which device the estimates are for.
        estimated: its hours for these images; None with the embedded teacher, or where operations could not be counted.
        published: the same for the data set as published; None where its size is not known.
        on_cpu: whether `here` are hours of a CPU.
    """

    extraction: Estimate
    steps: tuple[StepTrial, ...]
    runs: int
    here: Hours
    gpu: Gpu
    estimated: Hours | None
    published: Hours | None
    on_cpu: bool


def plan_recipe(prepared: Prepared) -> RecipePlan:
    """Try a few images and a few steps on this machine, and say what the recipe will take.

    Raises:
        LFIError: as `estimate` and `time_training`.
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
    passes = _passes(prepared, prepared.images[splits.train], len(prepared.val))
    gpu = Gpu()
    operations = None if recipe.teacher == EMBEDDED else extraction.trial.operations  # far too small to fill a GPU
    rate = gpu.peak * gpu.sustained
    seconds = {kind: trial.seconds for kind, trial in trials.items()}
    ideal = {kind: trial.operations / rate for kind, trial in trials.items()}
    estimated = published = None
    if operations is not None:
        estimated = Hours(extraction=operations / rate * prepared.extracted / 3600, training=_training(passes, ideal))
        if splits.published and not recipe.most_images:
            published = Hours(
                extraction=operations / rate * _published_images(prepared) / 3600,
                training=_training(_passes(prepared, splits.published, splits.published_val), ideal),
            )
    return RecipePlan(
        extraction=extraction,
        steps=tuple(trials.values()),
        runs=len(runs),
        here=Hours(
            extraction=extraction.trial.seconds * prepared.extracted / 3600, training=_training(passes, seconds)
        ),
        gpu=gpu,
        estimated=estimated,
        published=published,
        on_cpu=on_cpu,
    )


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
        epochs: float = data.epochs
        if prepared.recipe.steps:  # a budget: epochs shrink as images grow
            epochs = max(1.0, prepared.recipe.steps * data.batch_size / images)
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

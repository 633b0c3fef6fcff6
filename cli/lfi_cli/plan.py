"""lfi plan"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, hours_text, percent, say, size_text, stderr
from lfi_pipeline.core.options import Option, check
from lfi_pipeline.core.settings_file import SettingsFile
from lfi_pipeline.teachers.config import PlanConfig

if TYPE_CHECKING:
    from lfi_pipeline.teachers.estimate import Estimate

TRAINING = "Training"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Options of `lfi plan`."""

    plan: PlanConfig
    student: Annotated[str, Option("A timm model: a few steps of it are timed as well.", panel=TRAINING)] = ""
    image_size: Annotated[int | None, Option("Pixels a side of the student's input.", panel=TRAINING, ge=1)] = None
    patch_size: Annotated[int | None, Option("For plain vision transformers.", panel=TRAINING, ge=1)] = None
    student_batch: Annotated[
        int, Option("Images of a step that is timed, with objective lfi.", panel=TRAINING, ge=1)
    ] = 8

    def __post_init__(self) -> None:
        check(self)


@command(Plan, file=SettingsFile(PlanConfig))
def plan(config: Plan) -> Shown:
    """Before a run: bytes, hours, free disk, and when the cache has paid for itself, from a few batches tried here.

    Example: lfi plan --dataset scenes --data-root data/scenes --out shards/ --student resnet18
    """
    from lfi_pipeline.teachers.estimate import estimate

    found = estimate(config.plan)
    if not found.fits:
        warn_of_space(found)
    title = f"Plan, from {found.trial.images} images tried on this machine"
    result, rows = asdict(found), _rows(found)
    if config.student:
        result["training"] = _training(found, config)
        rows += _training_rows(result["training"])
    return Shown(result, lambda console: facts(console, title, rows))


def warn_of_space(found: Estimate) -> None:
    """Say on stderr that a cache will not fit where it is to be."""
    say(stderr(), f"warning: {size_text(found.bytes_total)} will not fit at {found.disk}; choose another --out.")


def _training(found: Estimate, config: Plan) -> Result:
    """A trial of the student's steps, and the hours that follow."""
    from lfi_pipeline.benchmarks.training_trial import time_training
    from lfi_pipeline.core.device import resolve_device
    from lfi_pipeline.students.config import StudentConfig
    from lfi_pipeline.training.config import DataConfig, TrainConfig

    extract = config.plan.extract
    run = TrainConfig(
        data=DataConfig(targets=Path()),
        student=StudentConfig(name=config.student, image_size=config.image_size, patch_size=config.patch_size),
    )
    trial = time_training(
        run,
        device=resolve_device(extract.device),
        batch_size=config.student_batch,
        maps_shape=(1, extract.words, 16, 16),
    )
    hours = trial.seconds * found.images * found.epochs / 3600
    return {"trial": asdict(trial), "hours": hours, "hours_all": hours * found.students}


def _training_rows(training: Result) -> list[tuple[str, object]]:
    trial = training["trial"]
    return [
        (
            "student",
            f"{trial['student']} at {trial['size'][1]}x{trial['size'][0]}, {1 / trial['seconds']:,.1f} images/s on "
            f"{trial['device']}, batches of {trial['batch_size']} in memory",
        ),
        ("training", f"{hours_text(training['hours'])} a student, {hours_text(training['hours_all'])} in all"),
    ]


def _rows(found: Estimate) -> list[tuple[str, object]]:
    trial = found.trial
    parts = {
        "teacher": trial.teacher,
        "waiting for images": trial.waiting,
        "encoding and writing": trial.writing,
        "captions": trial.captioning,
        "other": trial.other,
    }
    shares = ", ".join(f"{name} {percent(part / trial.seconds)}" for name, part in parts.items() if part)
    rows: list[tuple[str, object]] = [
        ("images", f"{found.images:,} in {found.shards:,} shard(s)"),
        ("bytes an image", f"{trial.bytes_per_image:,.0f} ({trial.words:,} different words so far)"),
        ("bytes in all", size_text(found.bytes_total)),
        ("free", f"{size_text(found.bytes_free)} at {found.disk}: {'fits' if found.fits else 'does not fit'}"),
        ("teacher", f"{trial.teacher_name}, {trial.kind}, {trial.precision} on {trial.device}"),
        ("one process", f"{hours_text(found.hours)} at {found.images_per_second:,.1f} images/s"),
        ("time goes to", shares),
    ]
    if trial.quarantined:
        rows.insert(1, ("unreadable", f"{trial.quarantined} of the images tried"))
    if found.processes > 1:
        rows.append(
            (f"{found.processes} processes", f"{hours_text(found.hours_shared)}, if each has a device of its own")
        )
    return [
        *rows,
        ("teacher run online", f"{hours_text(found.online_hours_per_epoch)} in every epoch of every student"),
        ("paid for itself", _break_even(found)),
        (
            "saved",
            f"{hours_text(found.hours_saved)} of the device with {found.students} students of {found.epochs} epochs",
        ),
    ]


def _break_even(found: Estimate) -> str:
    whole, epochs = divmod(math.ceil(found.break_even_epochs) - 1, found.epochs)
    return f"after epoch {epochs + 1} of student {whole + 1} ({found.break_even_students:.2g} students)"

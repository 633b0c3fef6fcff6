"""lfi plan"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lfi_cli.extract_teacher import parse_layers
from lfi_cli.output import DeviceOption, JsonFlag, Result, command, facts, finish, names, percent

if TYPE_CHECKING:
    from lfi_pipeline.teachers.estimate import Estimate

TRAINING = "Training"


@command
def plan(
    dataset: Annotated[str, typer.Option(help="As for lfi extract-teacher, like all options but the last of these.")],
    data_root: Annotated[Path | None, typer.Option(help="Where its files lie. Default: data/DATASET.")] = None,
    out: Annotated[Path, typer.Option(help="Where the cache is to be; nothing is written there.")] = Path("shards"),
    split: Annotated[str, typer.Option(help="Which split of the data set.")] = "train",
    teacher: Annotated[str, typer.Option(help="NAME[:TAG]. Default: the data set's own.")] = "",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    kind: Annotated[str, typer.Option(help="How a map is made. Default: the teacher's own.")] = "",
    row: Annotated[str, typer.Option(help="emitting, or reading.")] = "emitting",
    layers: Annotated[str, typer.Option(help="Teacher layers: how many, or which, as 2,5,8,11.")] = "",
    text: Annotated[str, typer.Option(help="captions, prompts, generate or auto.")] = "auto",
    captions: Annotated[str, typer.Option(help="first, longest, or all.")] = "first",
    prompt: Annotated[list[str] | None, typer.Option(help="A template with one {}; may be repeated.")] = None,
    words: Annotated[int, typer.Option(help="The most words of an image that get a map.")] = 16,
    views: Annotated[str, typer.Option(help="full, or full,hflip.")] = "full,hflip",
    layout: Annotated[str, typer.Option(help="zarr, or webdataset.")] = "zarr",
    codec: Annotated[str, typer.Option(help="uint8_sqrt, uint8_linear, or uint5_cbrt.")] = "uint8_sqrt",
    samples_per_shard: Annotated[int, typer.Option(help="Samples in one commit unit.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 64,
    workers: Annotated[int, typer.Option(help="Threads that read images; 0 chooses.")] = 0,
    device: DeviceOption = "auto",
    batches: Annotated[int, typer.Option(help="Batches to time, after one that is not timed.")] = 3,
    processes: Annotated[int, typer.Option(help="Processes that are to share the work, each on its own device.")] = 1,
    epochs: Annotated[int, typer.Option(help="Epochs that a student trains.")] = 100,
    students: Annotated[int, typer.Option(help="Students to be trained from the cache.")] = 10,
    student: Annotated[
        str, typer.Option(help="A timm model: a few steps of it are timed as well.", rich_help_panel=TRAINING)
    ] = "",
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side of the student's input.", rich_help_panel=TRAINING)
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option(help="For plain vision transformers.", rich_help_panel=TRAINING)
    ] = None,
    student_batch: Annotated[
        int, typer.Option(help="Images of a step that is timed, with objective lfi.", rich_help_panel=TRAINING)
    ] = 8,
    as_json: JsonFlag = False,
) -> Result:
    """Before a run: bytes, hours, free disk, and when the cache has paid for itself, from a few batches tried here.

    Example: lfi plan --dataset scenes --data-root data/scenes --out shards/ --student resnet18
    """
    from lfi_pipeline.teachers.estimate import PlanConfig, estimate
    from lfi_pipeline.teachers.extract import ExtractConfig

    found = estimate(
        PlanConfig(
            extract=ExtractConfig(
                dataset=dataset,
                data_root=data_root or Path("data") / Path(dataset).stem,
                split=split,
                teacher=teacher,
                precision=precision,
                kind=kind,
                row=row,
                layers=parse_layers(layers),
                text=text,
                captions=captions,
                prompts=tuple(prompt or ()),
                words=words,
                views=names(views),
                layout=layout,
                codec=codec,
                samples_per_shard=samples_per_shard,
                batch_size=batch_size,
                workers=workers,
                device=device,
            ),
            out=out,
            batches=batches,
            processes=processes,
            epochs=epochs,
            students=students,
        )
    )
    if not found.fits:
        sys.stderr.write(
            f"warning: {size_text(found.bytes_total)} will not fit at {found.disk}; choose another --out.\n"
        )
    title = f"Plan, from {found.trial.images} images tried on this machine"
    result, rows = asdict(found), _rows(found)
    if student:
        result["training"] = _training(found, device, words, student, image_size, patch_size, student_batch)
        rows += _training_rows(result["training"])
    return finish(result, as_json, lambda console: facts(console, title, rows))


def _training(
    found: Estimate, device: str, words: int, student: str, image_size: int | None, patch_size: int | None, batch: int
) -> Result:
    """A trial of the student's steps, and the hours that follow."""
    from lfi_pipeline.benchmarks.training_trial import time_training
    from lfi_pipeline.core.device import resolve_device
    from lfi_pipeline.students import StudentConfig
    from lfi_pipeline.training.config import StreamConfig, TrainConfig

    config = TrainConfig(
        stream=StreamConfig(targets=Path()),
        student=StudentConfig(name=student, image_size=image_size, patch_size=patch_size),
    )
    trial = time_training(config, device=resolve_device(device), batch_size=batch, maps_shape=(1, words, 16, 16))
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


def hours_text(hours: float) -> str:
    """Format a length of time."""
    for unit, length in (("hours", 1.0), ("minutes", 1 / 60)):
        if abs(hours) >= length:
            return f"{hours / length:,.1f} {unit}"
    return f"{hours * 3600:,.2g} seconds"


def size_text(count: float) -> str:
    """Format a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"

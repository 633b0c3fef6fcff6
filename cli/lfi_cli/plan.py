"""lfi plan, lfi reproduce"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lfi_cli.demo import run_command
from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, hours_text, percent, say, show_tree, size_text, stderr
from lfi_pipeline.core.options import DEVICE, Option, check
from lfi_pipeline.core.settings_file import SettingsFile
from lfi_pipeline.teachers.config import PlanConfig, own_root

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.recipes.commands import Prepared
    from lfi_pipeline.recipes.hours import FineTuning, Hours, RecipePlan
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

    extraction = estimate(config.plan)
    if not extraction.fits:
        warn_of_space(extraction)
    title = f"Plan, from {extraction.trial.images} images tried on this machine"
    result, rows = asdict(extraction), _rows(extraction)
    if config.student:
        result["training"] = _training(extraction, config)
        rows += _training_rows(result["training"])
    return Shown(result, lambda console: facts(console, title, rows))


def warn_of_space(estimate: Estimate) -> None:
    """Say on stderr that a cache will not fit where it is to be."""
    say(stderr(), f"warning: {size_text(estimate.bytes_total)} will not fit at {estimate.disk}; choose another --out.")


def _training(estimate: Estimate, config: Plan) -> Result:
    """Time a few training steps of the student, and return them with the hours of training that follow."""
    from lfi_pipeline.benchmarks.training_step import time_training
    from lfi_pipeline.core.runtime import resolve_device
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
    hours = trial.seconds * estimate.images * estimate.epochs / 3600
    return {"trial": asdict(trial), "hours": hours, "hours_all": hours * estimate.students}


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


def _rows(estimate: Estimate) -> list[tuple[str, object]]:
    trial = estimate.trial
    parts = {
        "teacher": trial.teacher,
        "waiting for images": trial.waiting,
        "encoding and writing": trial.writing,
        "captions": trial.captioning,
        "other": trial.other,
    }
    shares = ", ".join(f"{name} {percent(part / trial.seconds)}" for name, part in parts.items() if part)
    rows: list[tuple[str, object]] = [
        ("images", f"{estimate.images:,} in {estimate.shards:,} shard(s)"),
        ("bytes an image", f"{trial.bytes_per_image:,.0f} ({trial.words:,} different words so far)"),
        ("bytes in all", size_text(estimate.bytes_total)),
        ("free", f"{size_text(estimate.bytes_free)} at {estimate.disk}: {'fits' if estimate.fits else 'does not fit'}"),
        ("teacher", f"{trial.teacher_name}, {trial.kind}, {trial.precision} on {trial.device}"),
        ("one process", f"{hours_text(estimate.hours)} at {estimate.images_per_second:,.1f} images/s"),
        ("time goes to", shares),
    ]
    if trial.quarantined:
        rows.insert(1, ("unreadable", f"{trial.quarantined} of the images tried"))
    if estimate.processes > 1:
        rows.append(
            (f"{estimate.processes} processes", f"{hours_text(estimate.hours_shared)}, if each has a device of its own")
        )
    return [
        *rows,
        ("teacher run online", f"{hours_text(estimate.online_hours_per_epoch)} in every epoch of every student"),
        ("paid for itself", _break_even(estimate)),
        (
            "saved",
            f"{hours_text(estimate.hours_saved)} of the device with {estimate.students} students of "
            f"{estimate.epochs} epochs",
        ),
    ]


def _break_even(estimate: Estimate) -> str:
    whole, epochs = divmod(math.ceil(estimate.break_even_epochs) - 1, estimate.epochs)
    return f"after epoch {epochs + 1} of student {whole + 1} ({estimate.break_even_students:.2g} students)"


FINISHED = "finished.json"
FILES = {
    "report.html": "scores, curves and maps: open it in a browser",
    "results.md": "the table of all protocols",
    "results.csv": "the same for programs",
    "results.svg": "the same as a picture",
    "commands.sh": "every command that was run",
    "recipe.toml": "the recipe",
    "sweep.toml": "the students, as lfi sweep reads them",
    "shards*": "the teacher's maps",
    "runs/*": "the students",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reproduce:
    """Options of `lfi reproduce`."""

    name: Annotated[
        str | None, Option("A recipe, or the path of your own .toml; left out: list the recipes.", positional=True)
    ] = None
    data_root: Annotated[
        Path | None, Option("Where the data set lies. Left out: data/DATASET, or the folder it names.")
    ] = None
    out: Annotated[Path | None, Option("Where everything goes; a rerun goes on. Left out: reproduce-NAME.")] = None
    small: Annotated[bool, Option("A trial for any machine: embedded teacher, small student, one seed.")] = False
    dry_run: Annotated[bool, Option("Write recipe.toml, sweep.toml and commands.sh, print the plan and stop.")] = False
    measure: Annotated[bool, Option("Try a few images and steps here, to tell hours and bytes.")] = True
    zero_shot: Annotated[
        Mapping[str, Any],
        Option("Score students on this data set, which they never saw.", metavar="NAME=DIR"),
    ] = field(default_factory=dict)
    teacher: Annotated[str, Option("NAME[:TAG]. Left out: the recipe's, or the data set's own.")] = ""
    workers: Annotated[int, Option("Loader processes of training.", ge=0)] = 0
    together: Annotated[int, Option("Runs that are fed from one read; each takes its memory.", ge=1)] = 1
    device: Annotated[str, Option(DEVICE)] = "auto"

    def __post_init__(self) -> None:
        check(self)


@command(Reproduce)
def reproduce(config: Reproduce) -> Shown:
    """Run a full-scale recipe: maps, students of every objective and seed, protocols, table and page.

    It only chains the public commands; the plan shows each of them, with sizes and hours, before the first one runs.

    Example: lfi reproduce coco --data-root data/coco --out coco-full --dry-run
    """
    began = time.monotonic()
    from lfi_pipeline.recipes import Place, load_recipe
    from lfi_pipeline.recipes.commands import prepare, write_files

    if config.name is None:
        return _recipes()
    recipe = load_recipe(config.name, small=config.small)
    if config.teacher:
        recipe = replace(recipe, teacher=config.teacher)
    place = Place(
        data_root=config.data_root or own_root(recipe.dataset),
        out=config.out or Path(f"reproduce-{recipe.name}"),
        zero_shot={name: Path(str(folder)) for name, folder in config.zero_shot.items()},
        device=config.device,
        workers=config.workers,
        together=config.together,
    )
    prepared = prepare(recipe, place)
    plan = _measured(prepared) if config.measure else None
    result: Result = {
        "recipe": recipe.name,
        "out": str(place.out),
        "splits": asdict(prepared.splits),
        "runs": [str(run.folder) for run in prepared.runs],
        "commands": [each.line for each in prepared.commands],
        "left_out": list(prepared.left_out),
        "plan": None if plan is None else asdict(plan),
    }
    write_files(place, recipe, prepared.sweep, prepared.commands)
    if config.dry_run:
        return Shown(result, lambda console: _show(console, prepared, plan))
    _show(stderr(), prepared, plan)
    result["results"] = _run(prepared)
    result["seconds"] = time.monotonic() - began
    page, sheet = place.out / "report.html", place.out / "commands.sh"
    rows = [("seconds", f"{result['seconds']:.0f}"), ("report", page.resolve()), ("commands", sheet.resolve())]

    def render(console: Console) -> None:
        facts(console, "Done", rows)
        show_tree(console, place.out, FILES)

    return Shown(result, render)


def _recipes() -> Shown:
    from lfi_pipeline.recipes import load_recipe, recipe_names

    titles = {name: load_recipe(name).title for name in recipe_names()}
    result: Result = {"recipes": titles}
    return Shown(result, lambda console: facts(console, "Recipes: lfi reproduce NAME", list(titles.items())))


def _measured(prepared: Prepared) -> RecipePlan:
    from lfi_pipeline.recipes.hours import plan_recipe

    plan = plan_recipe(prepared)
    if not plan.extraction.fits:
        warn_of_space(plan.extraction)
    return plan


def _run(prepared: Prepared) -> list[dict[str, Any]]:
    """Run the commands in order, and return the result of each.

    Those that would do their work again are noted in `FINISHED` when they are done, and skipped on a rerun.
    """
    note = prepared.place.out / FINISHED
    from lfi_pipeline.core.errors import RunError
    from lfi_pipeline.core.io import write_output
    from lfi_pipeline.core.parse import read_json

    finished: list[str] = read_json(note, error=RunError) if note.is_file() else []
    results = []
    for each in prepared.commands:
        if each.once and each.line in finished:
            say(stderr(), f"\nfinished before: {each.line}")
            results.append({"command": each.line, "finished_before": True})
            continue
        results.append({"command": each.line, "result": run_command(*each.words)})
        if each.once:
            finished.append(each.line)
            write_output(note, json.dumps(finished, indent=1) + "\n")
    return results


def _show(console: Console, prepared: Prepared, plan: RecipePlan | None) -> None:
    recipe, splits = prepared.recipe, prepared.splits
    rows: list[tuple[str, object]] = [
        ("data", f"{recipe.dataset} at {prepared.place.data_root}: {splits.train} and {splits.val}"),
        ("images", ", ".join(f"{name} {count:,}" for name, count in prepared.images.items())),
        ("students", f"{len(prepared.runs)}"),
    ]
    if splits.note:
        rows.append(("note", splits.note))
    rows += [("left out", each) for each in prepared.left_out]
    rows += _hours(plan) if plan is not None else []
    rows += [
        ("files", ", ".join(str(prepared.place.out / each) for each in ("recipe.toml", "sweep.toml", "commands.sh")))
    ]
    facts(console, f"{recipe.title}: this project's choice, not the paper's settings", rows)
    for each in prepared.commands:
        say(console, f"\n# {each.title}\n{each.line}")


def _hours(plan: RecipePlan) -> list[tuple[str, object]]:
    extraction, trial = plan.extraction, plan.extraction.trial
    fits = "fits" if extraction.fits else "does not fit"
    rows: list[tuple[str, object]] = [
        ("training cache", f"{size_text(extraction.bytes_total)} at {extraction.disk}: {fits}"),
        (
            "teacher",
            f"{trial.teacher_name}, {1 / trial.seconds:,.2f} images/s here ({trial.device}, {trial.precision})",
        ),
    ]
    rows += [
        (
            "student",
            f"{step.student} at {step.size[1]}x{step.size[0]}, {1 / step.seconds:,.2f} images/s here, a batch of "
            f"{step.batch_size} in memory ({step.device}, {step.precision}); {step.operations / 1e9:,.1f} G operations",
        )
        for step in plan.steps
    ]
    rows += [("detection", _detector(each, plan)) for each in plan.detectors]
    device = "this CPU" if plan.on_cpu else trial.device
    rows.append((f"hours of {device}", _parts(plan.here) + "; measured on few images"))
    assumed = (
        f"if an {plan.gpu.name} sustains {plan.gpu.sustained:.0%} of {plan.gpu.peak / 1e12:,.0f} TFLOPS; not measured"
    )
    if plan.estimated is not None:
        rows.append(("estimate", f"{_parts(plan.estimated)}, {assumed}"))
    if plan.published is not None:
        rows.append(("as published", f"{_parts(plan.published)} for the data set's published size, {assumed}"))
    if plan.detectors:
        rows.append(
            ("counted", "maps, students, and the fine-tuning of detectors with as many objects as it ever takes")
        )
    if plan.uncounted:
        rows.append(("not counted", f"the protocols {', '.join(plan.uncounted)}" + _SCORING * bool(plan.detectors)))
    return rows


_SCORING = "; the scoring of detectors"


def _detector(tuning: FineTuning, plan: RecipePlan) -> str:
    """One fine-tuning of the protocol detection: what it is, and hours here and of the GPU that is assumed."""
    trial = tuning.trial
    step = (
        f"{tuning.runs} x {tuning.iterations:,} steps of {tuning.batch_size} images, Mask R-CNN on {trial.student} at "
        f"{trial.size[1]}x{trial.size[0]}, {1 / trial.seconds:,.2g} images/s here ({trial.device}, {trial.precision}); "
        f"{trial.operations / 1e9:,.1f} G operations"
    )
    here = hours_text(tuning.images * trial.seconds / 3600)
    if plan.estimated is None:
        return f"{step}: {here} here"
    rate = plan.gpu.peak * plan.gpu.sustained
    there = hours_text(tuning.images * trial.operations / rate / 3600)
    return f"{step}: {here} here, {there} of an {plan.gpu.name}"


def _parts(hours: Hours) -> str:
    text = f"maps {hours_text(hours.extraction)} + students {hours_text(hours.training)}"
    if not hours.detection:
        return text
    return f"{text} + detectors {hours_text(hours.detection)} = {hours_text(hours.total)}"

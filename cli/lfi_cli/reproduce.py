"""lfi reproduce"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lfi_cli.chained import run_command
from lfi_cli.output import DeviceOption, JsonFlag, Result, command, facts, finish
from lfi_cli.plan import hours_text, size_text
from lfi_pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from lfi_pipeline.recipes.commands import Prepared
    from lfi_pipeline.recipes.hours import Hours, RecipePlan

FINISHED = "finished.json"


@command
def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A recipe, or the path of your own .toml; left out: list the recipes.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies. Default: data/DATASET.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where everything goes; a rerun goes on. Default: reproduce-NAME.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="A trial for any machine: embedded teacher, small student, one seed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write recipe.toml, sweep.toml and commands.sh, print the plan and stop.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Try a few images and steps here, to tell hours and bytes.")
    ] = True,
    zero_shot: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DIR: score students on this data set, which they never saw; may be repeated."),
    ] = None,
    teacher: Annotated[str, typer.Option(help="NAME[:TAG]. Default: the recipe's, or the data set's own.")] = "",
    workers: Annotated[int, typer.Option(help="Loader processes of training.")] = 0,
    together: Annotated[int, typer.Option(help="Runs that are fed from one read; each takes its memory.")] = 1,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> Result:
    """Run a full-scale recipe: maps, students of every objective and seed, protocols, table and page.

    It only chains the public commands; the plan shows each of them, with sizes and hours, before the first one runs.

    Example: lfi reproduce coco --data-root data/coco --out coco-full --dry-run
    """
    began = time.monotonic()
    from lfi_pipeline.recipes import Place, load_recipe
    from lfi_pipeline.recipes.commands import prepare, write_files

    if name is None:
        return _recipes(as_json)
    recipe = load_recipe(name, small=small)
    if teacher:
        recipe = replace(recipe, teacher=teacher)
    place = Place(
        data_root=data_root or Path("data") / Path(recipe.dataset).stem,
        out=out or Path(f"reproduce-{recipe.name}"),
        zero_shot=_named(zero_shot or []),
        device=device,
        workers=workers,
        together=together,
    )
    prepared = prepare(recipe, place)
    plan = _measured(prepared) if measure else None
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
    if dry_run:
        return finish(result, as_json, lambda console: _show(console, prepared, plan))
    _show(Console(stderr=True), prepared, plan)
    result["results"] = _run(prepared)
    result["seconds"] = time.monotonic() - began
    page, sheet = place.out / "report.html", place.out / "commands.sh"
    rows = [("seconds", f"{result['seconds']:.0f}"), ("report", page.resolve()), ("commands", sheet.resolve())]
    return finish(result, as_json, lambda console: facts(console, "Done", rows))


def _recipes(as_json: bool) -> Result:
    from lfi_pipeline.recipes import load_recipe, recipe_names

    titles = {name: load_recipe(name).title for name in recipe_names()}
    result: Result = {"recipes": titles}
    return finish(result, as_json, lambda console: facts(console, "Recipes: lfi reproduce NAME", list(titles.items())))


def _named(given: list[str]) -> dict[str, Path]:
    named = {}
    for each in given:
        name, equals, folder = each.partition("=")
        if not (name and equals and folder) or name in named:
            raise ConfigError(f"--zero-shot must be NAME=DIR, each data set once, got {each!r}.")
        named[name] = Path(folder)
    return named


def _measured(prepared: Prepared) -> RecipePlan:
    from lfi_pipeline.recipes.hours import plan_recipe

    plan = plan_recipe(prepared)
    found = plan.extraction
    if not found.fits:
        sys.stderr.write(
            f"warning: {size_text(found.bytes_total)} will not fit at {found.disk}; choose another --out.\n"
        )
    return plan


def _run(prepared: Prepared) -> list[dict[str, Any]]:
    """Run the commands that are not finished, and keep note of those that would do their work again."""
    note = prepared.place.out / FINISHED
    from lfi_pipeline.core.errors import RunError
    from lfi_pipeline.core.io import write_output
    from lfi_pipeline.core.parse import read_json

    finished: list[str] = read_json(note, error=RunError) if note.is_file() else []
    results = []
    for each in prepared.commands:
        if each.once and each.line in finished:
            Console(stderr=True).print(f"\nfinished before: {each.line}", soft_wrap=True, highlight=False, markup=False)
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
        console.print(f"\n# {each.title}\n{each.line}", soft_wrap=True, highlight=False, markup=False)


def _hours(plan: RecipePlan) -> list[tuple[str, object]]:
    found, trial = plan.extraction, plan.extraction.trial
    fits = "fits" if found.fits else "does not fit"
    rows: list[tuple[str, object]] = [
        ("training cache", f"{size_text(found.bytes_total)} at {found.disk}: {fits}"),
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
    device = "this CPU" if plan.on_cpu else trial.device
    rows.append((f"hours of {device}", _both(plan.here) + "; measured on few images; protocols not counted"))
    assumed = (
        f"if an {plan.gpu.name} sustains {plan.gpu.sustained:.0%} of {plan.gpu.peak / 1e12:,.0f} TFLOPS; not measured"
    )
    if plan.estimated is not None:
        rows.append(("estimate", f"{_both(plan.estimated)}, {assumed}"))
    if plan.published is not None:
        rows.append(("as published", f"{_both(plan.published)} for the data set's published size, {assumed}"))
    return rows


def _both(hours: Hours) -> str:
    return f"maps {hours_text(hours.extraction)} + students {hours_text(hours.training)}"

"""lfi sweep"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lfi_cli.output import JsonFlag, Result, command, facts, finish
from lfi_cli.run_options import (
    CheckpointOption,
    KeepOption,
    TrackOption,
    TrainDeviceOption,
    WorkersOption,
    is_first_process,
    machine_of,
)
from lfi_pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from lfi_pipeline.report.leaderboard import Standing
    from lfi_pipeline.training.sweep import PlannedRun


@command
def sweep(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="TOML file: out, [base], [grid] and [[where]]; see the README.")],
    out: Annotated[Path | None, typer.Option(help="Directory of the runs; default: the file's.")] = None,
    together: Annotated[
        int, typer.Option(help="Runs of one data order that are fed from one read; each takes its memory.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and their steps and stop.")] = False,
    workers: WorkersOption = None,
    device: TrainDeviceOption = None,
    track: TrackOption = None,
    checkpoint_minutes: CheckpointOption = None,
    keep_every: KeepOption = None,
    as_json: JsonFlag = False,
) -> Result:
    """Train every combination of a grid of settings, and rank them.

    Run it again to go on where it stopped, also after the file has changed: finished runs stay, new ones are added.
    The ranking, in leaderboard.md and leaderboard.csv, is of all finished runs in the directory.

    Example: lfi sweep sweep.toml --together 3
    """
    from lfi_pipeline import training
    from lfi_pipeline.training.sweep import plan_sweep, read_sweep
    from lfi_pipeline.training.sweep_run import check_runs, run_sweep

    described = read_sweep(file)
    out = out or described.out
    if out is None:
        raise ConfigError(f"{file} must say out, the directory of the runs, or give --out.")
    plan = plan_sweep(described, out)
    steps = check_runs(plan, file)
    if dry_run:
        return _planned(plan, steps, out, as_json)
    outcomes = run_sweep(
        plan,
        out,
        machine_of(ctx.params),
        train=training.train,
        together=together,
        command=shlex.join(["lfi", *sys.argv[1:]]),
        tell=lambda text: Console(stderr=True).print(text, style="bold", highlight=False, markup=False, soft_wrap=True),
        record=is_first_process(),
    )
    failed = {outcome.run.name: outcome.error for outcome in outcomes if outcome.error is not None}
    result: Result = {"out": str(out), "runs": len(plan), "failed": failed}
    if is_first_process():
        _conclude(result, out, as_json)
    if failed:
        raise typer.Exit(1)
    return result


def _planned(plan: list[PlannedRun], steps: list[int], out: Path, as_json: bool) -> Result:
    from lfi_pipeline.training.sweep_run import is_finished

    runs = [
        {"name": run.name, "steps": count, "finished": is_finished(run)} for run, count in zip(plan, steps, strict=True)
    ]
    left = sum(count for run, count in zip(plan, steps, strict=True) if not is_finished(run))
    rows = [(str(run["name"]), f"{run['steps']} steps" + (", finished" if run["finished"] else "")) for run in runs]
    rows += [("", ""), ("runs", str(len(plan))), ("steps", f"{sum(steps)}, of them {left} to do"), ("in", str(out))]
    result: Result = {"out": str(out), "runs": runs, "steps": sum(steps), "steps_left": left}
    return finish(result, as_json, lambda console: facts(console, "Planned", rows))


def _conclude(result: Result, out: Path, as_json: bool) -> None:
    """Write the leaderboard of `out` and show it."""
    from lfi_pipeline.core.io import write_output
    from lfi_pipeline.report.leaderboard import standings, standings_csv, standings_markdown

    rows = standings(sorted(folder for folder in out.iterdir() if folder.is_dir()))
    write_output(out / "leaderboard.md", standings_markdown(rows))
    write_output(out / "leaderboard.csv", standings_csv(rows))
    result["leaderboard"] = [dataclasses.asdict(row) for row in rows]
    finish(result, as_json, lambda console: _show(console, rows, result))


def _show(console: Console, rows: list[Standing], result: dict[str, Any]) -> None:
    from lfi_pipeline.report.leaderboard import standings_table

    headings, cells = standings_table(rows)
    table = Table(*headings)
    for line in cells:
        table.add_row(*line)
    if rows:
        console.print(table)
    told = [("failed", f"{name}: {error}") for name, error in result["failed"].items()]
    facts(console, "", [*told, ("in", result["out"])])

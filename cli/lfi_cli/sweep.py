"""lfi sweep"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, is_first_process, say, show_tree, stderr, whole_table
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import Option, check
from lfi_pipeline.training.config import RuntimeConfig

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.report.views import Standing
    from lfi_pipeline.training.sweep import PlannedRun

FILES = {
    "*/config.json": "the runs, a directory each",
    "leaderboard.md": "the ranking, for people",
    "leaderboard.csv": "the ranking, for programs",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Options of `lfi sweep`."""

    file: Annotated[Path, Option("TOML file: out, [base], [grid] and [[where]]; see the README.", positional=True)]
    out: Annotated[Path | None, Option("Directory of the runs; left out: the file's.")] = None
    together: Annotated[
        int, Option("Runs of one data order that are fed from one read; each takes its memory.", ge=1)
    ] = 1
    dry_run: Annotated[bool, Option("List the runs and their steps and stop.")] = False
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        check(self)


@command(Sweep)
def sweep(config: Sweep) -> Shown:
    """Train every combination of a grid of settings, and rank them.

    Run it again to go on where it stopped, also after the file has changed: finished runs stay, new ones are added.
    The ranking, in leaderboard.md and leaderboard.csv, is of all finished runs in the directory.

    Example: lfi sweep sweep.toml --together 3
    """
    from lfi_pipeline.training.sweep import plan_sweep, read_sweep

    described = read_sweep(config.file)
    out = config.out or described.out
    if out is None:
        raise ConfigError(f"{config.file} must say out, the directory of the runs, or give `out`.")
    plan = plan_sweep(described, out)
    from lfi_pipeline import training
    from lfi_pipeline.training.sweep_run import check_runs, run_sweep

    steps = check_runs(plan, config.file)
    if config.dry_run:
        return _planned(plan, steps, out)
    outcomes = run_sweep(
        plan,
        out,
        config.runtime,
        train=training.train,
        together=config.together,
        command=shlex.join(["lfi", *sys.argv[1:]]),
        tell=lambda text: stderr().print(text, style="bold", highlight=False, markup=False, soft_wrap=True),
        record=is_first_process(),
    )
    failed = {outcome.run.name: outcome.error for outcome in outcomes if outcome.error is not None}
    result: Result = {"out": str(out), "runs": len(plan), "failed": failed}
    if not is_first_process():
        return Shown(result, silent=True, code=int(bool(failed)))
    rows = _leaderboard(result, out)
    return Shown(result, lambda console: _show(console, rows, result), code=int(bool(failed)))


def _planned(plan: list[PlannedRun], steps: list[int], out: Path) -> Shown:
    from lfi_pipeline.training.sweep_run import is_finished

    runs = [
        {"name": run.name, "steps": count, "finished": is_finished(run)} for run, count in zip(plan, steps, strict=True)
    ]
    left = sum(count for run, count in zip(plan, steps, strict=True) if not is_finished(run))
    rows = [(str(run["name"]), f"{run['steps']} steps" + (", finished" if run["finished"] else "")) for run in runs]
    rows += [("", ""), ("runs", str(len(plan))), ("steps", f"{sum(steps)}, of them {left} to do"), ("in", str(out))]
    result: Result = {"out": str(out), "runs": runs, "steps": sum(steps), "steps_left": left}
    return Shown(result, lambda console: facts(console, "Planned", rows))


def _leaderboard(result: Result, out: Path) -> list[Standing]:
    """Write the leaderboard of `out`, and add it to the result."""
    from lfi_pipeline.report.text import standings_csv, standings_markdown, write_text
    from lfi_pipeline.report.views import standings

    rows = standings(sorted(folder for folder in out.iterdir() if folder.is_dir()))
    write_text(out / "leaderboard.md", standings_markdown(rows))
    write_text(out / "leaderboard.csv", standings_csv(rows))
    result["leaderboard"] = [dataclasses.asdict(row) for row in rows]
    return rows


def _show(console: Console, rows: list[Standing], result: dict[str, Any]) -> None:
    from rich.table import Table

    from lfi_pipeline.report.text import standings_table

    headings, cells = standings_table(rows)
    table = Table(*headings)
    for line in cells:
        table.add_row(*line)
    if rows:
        whole_table(console, table)
    told = [("failed", f"{name}: {error}") for name, error in result["failed"].items()]
    facts(console, "", [*told, ("in", result["out"])])
    show_tree(console, Path(result["out"]), FILES)
    if rows:
        say(console, f"Compare them in every protocol: lfi compare {result['out']}")

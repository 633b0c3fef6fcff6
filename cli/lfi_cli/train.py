"""lfi train, lfi sweep"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, is_first_process, percent, say, show_tree, stderr, whole_table
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import Option, build, check, current_names, declared, flatten
from lfi_pipeline.training.config import RUN_FILE, RuntimeConfig, TrainConfig, config_text

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.report.views import Standing
    from lfi_pipeline.training.sweep import PlannedRun

RUN = {
    "config.json": "every setting, and what the run was made from",
    "config.toml": "the settings as a file for lfi train --config",
    "metrics.jsonl": "losses and scores by step",
    "summary.json": "what came out, once it is finished",
    "checkpoints": "weights: last, best, and the state to go on from while it runs",
    "tensorboard": "curves for TensorBoard",
    "evaluation": "results of lfi evaluate",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Options of `lfi train`."""

    run: TrainConfig
    out: Annotated[
        Path | None, Option("Directory of the run; of several students: that of their runs. Left out: runs/NAME.")
    ] = None
    dry_run: Annotated[bool, Option("Print the settings as TOML and stop.")] = False
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@command(Train, raw=True, file=RUN_FILE)
def train(options: Mapping[str, Any]) -> Shown:
    """Stage two: train students against cached targets. The teacher is not loaded.

    Example: lfi train --targets shards/ --student vit_tiny_patch16_224 --objective lfi
    """
    settings = current_names(Train, options)
    out, students = settings.get("out"), _students(settings.get("student"))
    flat = {name: _absolute(name, value) for name, value in settings.items() if name in declared(TrainConfig)}
    configs = [build(TrainConfig, {**flat, "student": name}) for name in students]
    runtime = build(RuntimeConfig, {n: value for n, value in settings.items() if n in declared(RuntimeConfig)})
    from lfi_pipeline.training.run_dir import run_name

    folders = [Path(out or "runs") / run_name(each) for each in configs]
    if out is not None and len(configs) == 1:
        folders = [Path(out)]
    runs = list(zip(configs, folders, strict=True))
    if settings.get("dry_run"):
        return _planned(runs)
    from lfi_pipeline import training

    summaries = training.train(runs, runtime, command=shlex.join(["lfi", *sys.argv[1:]]))
    trained = [{"out": str(folder), **summary} for folder, summary in zip(folders, summaries, strict=True)]
    result: Result = trained[0] if len(trained) == 1 else {"runs": trained}
    return Shown(result, lambda console: show_runs(console, trained), silent=not is_first_process())


def _students(student: Any) -> list[str | None]:
    """Return the students to train; None is the default one. A file names one, options may name several."""
    names = student if isinstance(student, list) else [student]
    if len(set(names)) < len(names):
        raise ConfigError(f"student must name each student once, got {', '.join(names)}.", argument="student")
    return names


def _absolute(name: str, value: Any) -> Any:
    """Return a setting; a path is written in full, since a run is known by where its data lie."""
    kind = declared(TrainConfig)[name].kind
    if value is None or kind not in (Path, Path | None):
        return value
    from lfi_pipeline.core.hub import in_full

    return in_full(value)


def _planned(runs: Sequence[tuple[TrainConfig, Path]]) -> Shown:
    planned = [{"out": str(folder), "settings": flatten(each)} for each, folder in runs]
    text = "\n".join(config_text(flatten(each), folder / "config.toml") for each, folder in runs)
    return Shown({"runs": planned}, lambda console: console.out(text, end="", highlight=False))


def show_runs(console: Console, trained: Sequence[Mapping[str, Any]]) -> None:
    """Print one run as facts, several as one table; then what lies in the directory of the first."""
    facts_of = [_facts(run) for run in trained]
    if len(trained) == 1:
        facts(console, Path(trained[0]["out"]).name, [*facts_of[0].items(), ("in", trained[0]["out"])])
    else:
        from rich.table import Table

        names = list(dict.fromkeys(name for cells in facts_of for name in cells))
        table = Table("run", *names)
        for run, cells in zip(trained, facts_of, strict=True):
            table.add_row(Path(run["out"]).name, *(cells.get(name, "–") for name in names))
        whole_table(console, table)
        facts(console, "", [("in", Path(trained[0]["out"]).parent)])
    show_tree(console, Path(trained[0]["out"]), RUN)


def _facts(run: Mapping[str, Any]) -> dict[str, str]:
    from lfi_pipeline.evaluation.metrics import MEASURES, without_domains

    held_out = {name for name, value in run.items() if name.endswith("_heldout") and value is None}
    measures = [each for each in MEASURES["classification"] if each.name in run and each.name not in held_out]
    return {
        "steps": str(run["steps"]),
        "step time": f"{run['step_ms']:.0f} ms (median)",
        "parameters": ", ".join(f"{count:,} {part}" for part, count in run["parameters"].items() if count),
        **{each.heading: percent(run[each.name]) for each in without_domains(measures)},
    }


CHOSEN = "chosen.toml"
_TRIED = "lr weight weight_decay query_lr query_scale layer_decay warmup_epochs epochs words ema"
FILES = {
    "*/config.json": "the runs, a directory each",
    "leaderboard.md": "the ranking, for people",
    "leaderboard.csv": "the ranking, for programs",
    CHOSEN: "the best trials, as settings of the next sweep",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Options of `lfi sweep`."""

    file: Annotated[Path, Option("TOML file: out, [base], [grid] and [[where]]; see the README.", positional=True)]
    out: Annotated[Path | None, Option("Directory of the runs; left out: the file's.")] = None
    together: Annotated[
        int, Option("Runs of one data order that are fed from one read; each takes its memory.", ge=1)
    ] = 1
    choose: Annotated[
        tuple[str, ...],
        Option(
            "Settings that were tried out, such as lr,weight: show and write the best trial, by validation, for every "
            "combination of the others.",
            separator=",",
            choices=tuple(_TRIED.split()),
        ),
    ] = ()
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
        return _sweep_planned(plan, steps, out)
    outcomes = run_sweep(
        plan,
        out,
        config.runtime,
        train=training.train,
        together=config.together,
        command=shlex.join(["lfi", *sys.argv[1:]]),
        tell=lambda text: stderr().print(text, style="bold", highlight=False, soft_wrap=True),
        record=is_first_process(),
    )
    failed = {outcome.run.name: outcome.error for outcome in outcomes if outcome.error is not None}
    result: Result = {"out": str(out), "runs": len(plan), "failed": failed}
    if not is_first_process():
        return Shown(result, silent=True, code=int(bool(failed)))
    rows, best = _leaderboard(result, out, config.choose)
    return Shown(result, lambda console: _show(console, rows, best, result), code=int(bool(failed)))


def _sweep_planned(plan: list[PlannedRun], steps: list[int], out: Path) -> Shown:
    from lfi_pipeline.training.sweep_run import is_finished

    runs = [
        {"name": run.name, "steps": count, "finished": is_finished(run)} for run, count in zip(plan, steps, strict=True)
    ]
    left = sum(count for run, count in zip(plan, steps, strict=True) if not is_finished(run))
    rows = [(str(run["name"]), f"{run['steps']} steps" + (", finished" if run["finished"] else "")) for run in runs]
    rows += [("", ""), ("runs", str(len(plan))), ("steps", f"{sum(steps)}, of them {left} to do"), ("in", str(out))]
    result: Result = {"out": str(out), "runs": runs, "steps": sum(steps), "steps_left": left}
    return Shown(result, lambda console: facts(console, "Planned", rows))


def _leaderboard(result: Result, out: Path, tried: Sequence[str]) -> tuple[list[Standing], str]:
    """Write the leaderboard of `out` and the best trials, and add them to the result; the trials as TOML as well."""
    from lfi_pipeline.report.text import standings_csv, standings_markdown, write_text
    from lfi_pipeline.report.verdict import choices_toml
    from lfi_pipeline.report.views import choices, standings

    rows = standings(sorted(folder for folder in out.iterdir() if folder.is_dir()))
    write_text(out / "leaderboard.md", standings_markdown(rows))
    write_text(out / "leaderboard.csv", standings_csv(rows))
    result["leaderboard"] = [asdict(row) for row in rows]
    chosen = choices(rows, tried) if tried else []
    best = choices_toml(chosen)
    if tried:
        result["chosen"] = [asdict(choice) for choice in chosen]
        write_text(out / CHOSEN, best)
    return rows, best


def _show(console: Console, rows: list[Standing], best: str, result: dict[str, Any]) -> None:
    from rich.table import Table

    from lfi_pipeline.report.text import standings_table

    headings, cells = standings_table(rows)
    table = Table(*headings)
    for line in cells:
        table.add_row(*line)
    if rows:
        whole_table(console, table)
    say(console, *best.splitlines())
    failures = [("failed", f"{name}: {error}") for name, error in result["failed"].items()]
    facts(console, "", [*failures, ("in", result["out"])])
    show_tree(console, Path(result["out"]), FILES)
    if rows:
        say(console, f"Compare them in every protocol: lfi compare {result['out']}")

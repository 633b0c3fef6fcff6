"""lfi train"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, is_first_process, percent, show_tree, whole_table
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import Option, build, current_names, declared, flatten
from lfi_pipeline.training.config import RuntimeConfig, TrainConfig
from lfi_pipeline.training.settings import RUN_FILE, config_text

if TYPE_CHECKING:
    from rich.console import Console

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
def train(given: Mapping[str, Any]) -> Shown:
    """Stage two: train students against cached targets. The teacher is not loaded.

    Example: lfi train --targets shards/ --student vit_tiny_patch16_224 --objective lfi
    """
    given = current_names(Train, given)
    out, students = given.get("out"), _students(given.get("student"))
    flat = {name: _absolute(name, value) for name, value in given.items() if name in declared(TrainConfig)}
    configs = [build(TrainConfig, {**flat, "student": name}) for name in students]
    runtime = build(RuntimeConfig, {n: value for n, value in given.items() if n in declared(RuntimeConfig)})
    from lfi_pipeline.training.run_dir import run_name

    folders = [Path(out or "runs") / run_name(each) for each in configs]
    if out is not None and len(configs) == 1:
        folders = [Path(out)]
    runs = list(zip(configs, folders, strict=True))
    if given.get("dry_run"):
        return _planned(runs)
    from lfi_pipeline import training

    summaries = training.train(runs, runtime, command=shlex.join(["lfi", *sys.argv[1:]]))
    trained = [{"out": str(folder), **summary} for folder, summary in zip(folders, summaries, strict=True)]
    result: Result = trained[0] if len(trained) == 1 else {"runs": trained}
    return Shown(result, lambda console: show_runs(console, trained), silent=not is_first_process())


def _students(given: Any) -> list[str | None]:
    """The students that were asked for; None is the default one. A file names one, options may name several."""
    names = given if isinstance(given, list) else [given]
    if len(set(names)) < len(names):
        raise ConfigError(f"student must name each student once, got {', '.join(names)}.", argument="student")
    return names


def _absolute(name: str, value: Any) -> Any:
    """A run is known by where its data lie, so paths that were typed are written down in full."""
    kind = declared(TrainConfig)[name].kind
    return str(Path(value).resolve()) if value is not None and kind in (Path, Path | None) else value


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

        names = list(dict.fromkeys(name for told in facts_of for name in told))
        table = Table("run", *names)
        for run, told in zip(trained, facts_of, strict=True):
            table.add_row(Path(run["out"]).name, *(told.get(name, "–") for name in names))
        whole_table(console, table)
        facts(console, "", [("in", Path(trained[0]["out"]).parent)])
    show_tree(console, Path(trained[0]["out"]), RUN)


def _facts(run: Mapping[str, Any]) -> dict[str, str]:
    from lfi_pipeline.evaluation.metrics import HEAD_SCORES

    parts = (f"{count:,} {part}" for part, count in run["parameters"].items() if count)
    return {
        "steps": str(run["steps"]),
        "step time": f"{run['step_ms']:.0f} ms (median)",
        "parameters": ", ".join(parts),
        **{heading: percent(run[name]) for name, heading in HEAD_SCORES.items() if name in run},
    }

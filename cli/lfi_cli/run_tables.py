"""How finished runs are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lfi_cli.output import facts, percent


def show_runs(console: Console, trained: Sequence[Mapping[str, Any]]) -> None:
    """Print one run as facts, several as one table."""
    facts_of = [_facts(run) for run in trained]
    if len(trained) == 1:
        facts(console, Path(trained[0]["out"]).name, [*facts_of[0].items(), ("in", trained[0]["out"])])
        return
    names = list(dict.fromkeys(name for told in facts_of for name in told))
    table = Table("run", *names)
    for run, told in zip(trained, facts_of, strict=True):
        table.add_row(Path(run["out"]).name, *(told.get(name, "–") for name in names))
    console.print(table)
    facts(console, "", [("in", Path(trained[0]["out"]).parent)])


def _facts(run: Mapping[str, Any]) -> dict[str, str]:
    from lfi_pipeline.evaluation.metrics import HEAD_SCORES

    parts = (f"{count:,} {part}" for part, count in run["parameters"].items() if count)
    return {
        "steps": str(run["steps"]),
        "step time": f"{run['step_ms']:.0f} ms (median)",
        "parameters": ", ".join(parts),
        **{heading: percent(run[name]) for name, heading in HEAD_SCORES.items() if name in run},
    }

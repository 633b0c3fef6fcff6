"""lfi evaluate"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, say, show_tree, stderr
from lfi_pipeline.core.options import Option
from lfi_pipeline.evaluation.config import PROTOCOL_CONFIGS, EvaluationConfig, evaluation_configs

if TYPE_CHECKING:
    from rich.console import Console

FILES = {
    "evaluation/*.json": "results by protocol and settings, a file each",
    "gallery.*": "samples with the student's and the teacher's maps, for the report",
    "evaluation/detections-*.json.gz": "detections as COCO results",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Options of `lfi evaluate` beside those of the protocols."""

    runs: Annotated[tuple[Path, ...], Option("Run directories made by lfi train.", positional=True, at_least_one=True)]
    protocol: Annotated[
        tuple[str, ...],
        Option(
            "Which protocol. Left out: classification, and grounding where the targets have masks.",
            choices=tuple(PROTOCOL_CONFIGS),
        ),
    ] = ()


@command((Evaluate, EvaluationConfig, *PROTOCOL_CONFIGS.values()), raw=True)
def evaluate(given: Mapping[str, Any]) -> Shown:
    """Score runs by one protocol or several; results are kept in RUN/evaluation/. Several runs are also shown by seeds.

    Example: lfi evaluate runs/lfi-0 --targets shards-val/
    """
    options = {name: value for name, value in given.items() if name not in ("runs", "protocol")}
    runs, names = [Path(run) for run in given["runs"]], tuple(given.get("protocol", ()))
    asked = bool(names)
    if not asked:
        from lfi_pipeline.evaluation.protocols import default_protocols

        names = default_protocols(_path(options.get("targets")), _path(options.get("data_root")))
        if "targets" in options and "grounding" not in names:
            say(stderr(), "The data set of --targets has no masks, so grounding is not scored.")
    common, configs = evaluation_configs(names, options, ignored=() if asked else ("targets",))
    from lfi_pipeline.evaluation import evaluate_runs

    results = evaluate_runs(runs, configs, common)
    tables, notes = _tables(results)
    domains = _domain_tables(results)
    told: Result = {
        "runs": {
            str(run): {
                name: {k: v for k, v in dataclasses.asdict(r).items() if k != "protocol"} for name, r in of.items()
            }
            for run, of in results.items()
        },
        "tables": {name: [dataclasses.asdict(row) for row in rows] for name, rows in {**tables, **domains}.items()},
    }

    def render(console: Console) -> None:
        from lfi_cli.evaluation_tables import show_domain_tables, show_run, show_tables

        for run, found in results.items():
            show_run(console, run, found)
        if tables:
            show_tables(console, tables, notes)
        for found_tables in domains.values():
            show_domain_tables(console, found_tables)
        show_tree(console, next(iter(results)), FILES)

    return Shown(told, render)


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _tables(results: Mapping[Path, Mapping[str, Any]]) -> tuple[Mapping[str, Any], Sequence[str]]:
    from lfi_pipeline.report.views import CROSS_DOMAIN, seed_tables

    others = {run: {name: r for name, r in of.items() if name != CROSS_DOMAIN} for run, of in results.items()}
    return seed_tables(others) if len(results) > 1 and any(others.values()) else ({}, ())


def _domain_tables(results: Mapping[Path, Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
    """Runs that leave out different domains are columns of one row, so their table is another."""
    from lfi_pipeline.report.views import CROSS_DOMAIN, domain_tables

    found = {run: of[CROSS_DOMAIN] for run, of in results.items() if CROSS_DOMAIN in of}
    return {CROSS_DOMAIN: domain_tables(found)} if len(found) > 1 else {}

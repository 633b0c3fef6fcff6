"""Results of several runs by protocol: those that differ in their seed alone are one row, mean and 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lfi_pipeline.evaluation.measures import MEASURES
from lfi_pipeline.evaluation.results import ProtocolResult
from lfi_pipeline.report.groups import gather
from lfi_pipeline.report.runs import load_run
from lfi_pipeline.report.statistics import Estimate, estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRow:
    """Runs of one label.

    Attributes:
        label: as `report.groups` names them.
        seeds: of its runs.
        scores: measure -> mean over the seeds that have it, and interval, in the measure's unit.
    """

    label: str
    seeds: tuple[int, ...]
    scores: Mapping[str, Estimate]


def seed_tables(
    results: Mapping[Path, Mapping[str, ProtocolResult]],
) -> tuple[dict[str, list[SeedRow]], list[str]]:
    """Return protocol -> rows, controls first, and notes on what was odd among the runs.

    Args:
        results: run -> protocol -> result, as `evaluation.evaluate_runs` returns them.

    Raises:
        RunError: a run whose files cannot be read.
    """
    groups, notes = gather([load_run(path) for path in results])
    tables: dict[str, list[SeedRow]] = {}
    for protocol in dict.fromkeys(name for found in results.values() for name in found):
        tables[protocol] = []
        for group in groups:
            found = [results[run.path][protocol].scores for run in group.runs if protocol in results[run.path]]
            measured = {
                measure.name: estimate([value for scores in found if (value := scores.get(measure.name)) is not None])
                for measure in MEASURES[protocol]
            }
            tables[protocol].append(
                SeedRow(
                    label=group.label,
                    seeds=tuple(run.config.seed for run in group.runs if protocol in results[run.path]),
                    scores={name: each for name, each in measured.items() if each is not None},
                )
            )
    return tables, notes

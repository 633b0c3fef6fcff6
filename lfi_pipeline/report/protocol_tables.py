"""Results that a comparison could have and has not, each with the command that makes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lfi_pipeline.core.options import command_line
from lfi_pipeline.evaluation.metrics import MEASURES, PROTOCOLS, Measure
from lfi_pipeline.evaluation.results import ProtocolResult
from lfi_pipeline.report.groups import Group, gather, label_runs
from lfi_pipeline.report.runs import Run, RunConfig, load_run
from lfi_pipeline.report.statistics import Estimate, estimate

TEACHER = "teacher_"
"""Measures of this prefix are of the teacher alone, whatever the run; the rest of the name is the student's measure."""
_OF_A_RUN = {"seed": PROTOCOLS, "domains": ("cross-domain",)}
"""Setting -> the protocols in which it tells values within one table apart, not tables."""

Results = Mapping[Path, Sequence[ProtocolResult]]
Values = Mapping[int, float]
"""Seed -> value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRow:
    """One group: label, colour, settings, the seeds that were scored, and for each column its values by seed."""

    label: str
    slot: int
    config: RunConfig
    seeds: tuple[int, ...]
    values: tuple[Values, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RawTable:
    """One protocol with one choice of settings.

    Attributes:
        settings: of the protocol.
        differing: names of those in which this protocol's tables differ.
        columns: what was measured, main ones first.
        rows: groups with at least one run that was scored, be it without a value: it may never have got there.
        teacher: for each column the teacher's own value, None where there is none.
    """

    protocol: str
    settings: Mapping[str, Any]
    differing: tuple[str, ...]
    columns: tuple[Measure, ...]
    rows: tuple[RawRow, ...]
    teacher: tuple[float | None, ...]


def protocol_tables(groups: Sequence[Group], results: Results, only: Sequence[str] = ()) -> list[RawTable]:
    """Return the tables of the protocols that at least one run has a result of, in the order of `MEASURES`.

    Args:
        groups: of runs.
        results: path of a run -> what `read_results` gives.
        only: protocols to keep; empty: all.
    """
    tables = []
    for protocol in PROTOCOLS:
        found = [r for group in groups for run in group.runs for r in results[run.path] if r.protocol == protocol]
        variants = {_key(result): _shared(result) for result in found}
        names = sorted({name for settings in variants.values() for name in settings})
        differing = tuple(
            name for name in names if len({json.dumps(s.get(name), sort_keys=True) for s in variants.values()}) > 1
        )
        for key, settings in sorted(variants.items(), key=_order) if not only or protocol in only else ():
            own = {path: [r for r in rs if r.protocol == protocol and _key(r) == key] for path, rs in results.items()}
            make = _cross_domain if protocol == "cross-domain" else _plain
            columns, rows = make(protocol, groups, own)
            teacher = _of_teacher(protocol, [result for of_run in own.values() for result in of_run])
            kept = [i for i in range(len(columns)) if any(row.values[i] for row in rows)]
            tables.append(
                RawTable(
                    protocol=protocol,
                    settings=settings,
                    differing=differing,
                    columns=tuple(columns[i] for i in kept),
                    rows=tuple(replace(row, values=tuple(row.values[i] for i in kept)) for row in rows if row.seeds),
                    teacher=tuple(teacher.get(columns[i].name) for i in kept),
                )
            )
    return [table for table in tables if table.columns]


def _shared(result: ProtocolResult) -> dict[str, Any]:
    return {k: value for k, value in result.settings.items() if result.protocol not in _OF_A_RUN.get(k, ())}


def _order(variant: tuple[str, Mapping[str, Any]]) -> list[tuple[str, float, str]]:
    """Numbers by their size, all else as text."""
    return [
        (name, value, "") if isinstance(value, int | float) else (name, 0.0, json.dumps(value))
        for name, value in sorted(variant[1].items())
    ]


def _key(result: ProtocolResult) -> str:
    return json.dumps(_shared(result), sort_keys=True)


def _measures(protocol: str) -> list[Measure]:
    return [measure for measure in MEASURES[protocol] if not measure.name.startswith(TEACHER)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _plain(protocol: str, groups: Sequence[Group], results: Results) -> tuple[list[Measure], list[RawRow]]:
    """Rows are the groups. A run that was scored several times, with other seeds, counts once, by its mean."""
    columns = _measures(protocol)
    rows = []
    for group in groups:
        values = tuple(
            group.by_seed(lambda run, name=measure.name: _mean([r.scores.get(name) for r in results[run.path]]))  # type: ignore[misc]
            for measure in columns
        )
        seeds = tuple(run.config.seed for run in group.runs if results[run.path])
        rows.append(RawRow(label=group.label, slot=group.slot, config=group.config, seeds=seeds, values=values))
    return columns, rows


def _cross_domain(protocol: str, groups: Sequence[Group], results: Results) -> tuple[list[Measure], list[RawRow]]:
    """Rows are groups whose runs may differ in the domain they left out; columns are the mean over them, and each.

    The mean is of the seeds that have every domain that any run left out: a mean over fewer domains is another number.
    """
    scored = [run for group in groups for run in group.runs if results[run.path]]
    domains = sorted({_left_out(result) for run in scored for result in results[run.path]})
    slots = {run.path: group.slot for group in groups for run in group.runs}
    columns = []
    for measure in _measures(protocol):
        if len(domains) == 1:
            columns.append(replace(measure, heading=f"{measure.heading}: {domains[0]}"))
            continue
        columns.append(replace(measure, heading=f"{measure.heading}: mean of {len(domains)}"))
        columns += [replace(measure, name=f"{measure.name}_{d}", heading=f"{measure.heading}: {d}") for d in domains]
    rows = []
    for label, runs in label_runs(scored, across=("hold out", "train samples")).items():
        values: list[Values] = []
        for measure in _measures(protocol):
            by_domain = [_of_domain(runs, results, domain, measure.name) for domain in domains]
            whole = set.intersection(*(set(of_domain) for of_domain in by_domain))
            values.append({s: math.fsum(of[s] for of in by_domain) / len(domains) for s in sorted(whole)})
            values += by_domain if len(domains) > 1 else []
        first = min(runs, key=lambda run: run.config.hold_out)
        seeds = tuple(sorted({run.config.seed for run in runs}))
        rows.append(RawRow(label=label, slot=slots[first.path], config=first.config, seeds=seeds, values=tuple(values)))
    return columns, rows


def _left_out(result: ProtocolResult) -> str:
    return "+".join(result.settings.get("domains") or ["held out"])


def _of_domain(runs: Sequence[Run], results: Results, domain: str, name: str) -> Values:
    found: dict[int, float] = {}
    for run in sorted(runs, key=lambda run: run.config.seed):
        value = _mean([r.scores.get(name) for r in results[run.path] if _left_out(r) == domain])
        if value is not None:
            found[run.config.seed] = value
    return found


def _of_teacher(protocol: str, results: Sequence[ProtocolResult]) -> dict[str, float]:
    """Student's measure -> the teacher's value, the mean over the results (runs of one cache have one value)."""
    names = [measure.name for measure in MEASURES[protocol] if measure.name.startswith(TEACHER)]
    means = {name.removeprefix(TEACHER): _mean([result.scores.get(name) for result in results]) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}


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


_NEEDS = {
    "grounding": {"targets": "TARGETS"},
    "zero-shot": {"targets": "TARGETS"},
    "convergence": {"reference": "RUN"},
}
"""Options without which the protocol does not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """What is missing, and the command that makes it."""

    what: str
    command: str


def missing_results(
    groups: Sequence[Group], results: Mapping[Path, Sequence[ProtocolResult]], only: Sequence[str] = ()
) -> list[Missing]:
    """Return what is missing: a protocol that other runs have, and, where no run has any result, classification.

    Args:
        groups: of runs.
        results: path of a run -> its results.
        only: protocols to look at; empty: all.
    """
    there = {result.protocol for of_run in results.values() for result in of_run}
    wanted = [protocol for protocol in PROTOCOLS if protocol in (only or there or ("classification",))]
    found = []
    for protocol in wanted:
        lacking = [
            (group, run)
            for group in groups
            for run in group.runs
            if applies(protocol, run.config) and all(result.protocol != protocol for result in results[run.path])
        ]
        if not lacking:
            continue
        seeds: dict[str, list[str]] = {}
        for group, run in lacking:
            seeds.setdefault(group.label, []).append(str(run.config.seed))
        told = "; ".join(f"{label} (seed {', '.join(of)})" for label, of in seeds.items())
        needed = _NEEDS.get(protocol, {})
        command = command_line("evaluate", *(run.path for _, run in lacking), protocol=protocol, **needed)
        found.append(Missing(what=f"{protocol}: no result of {told}.", command=command))
    return found


def applies(protocol: str, config: RunConfig) -> bool:
    """Whether the protocol can score such a run at all; in doubt, it can."""
    if protocol == "zero-shot":
        return "presence" in config.objective.split("+") and config.mode == "text"
    if protocol == "convergence":  # its reference is the control
        return config.objective != "none"
    return True

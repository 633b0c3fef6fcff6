"""The one tidy table of what runs scored, and the one place that averages it over seeds.

A row is one value of one run. Every view (leaderboards, comparisons, the cross-domain table, the verdict) selects rows
and calls `aggregate` or `by_seed`; none averages on its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lfi_pipeline.core.schema import Share, read_as
from lfi_pipeline.evaluation.metrics import MEASURES, PARTS, PROTOCOLS, TEACHER, Measure, without_domains
from lfi_pipeline.evaluation.protocols import EVALUATION, ProtocolResult
from lfi_pipeline.report.groups import Group, label_runs
from lfi_pipeline.report.runs import Run, RunConfig
from lfi_pipeline.report.statistics import Estimate, estimate

TRAINING = "training"
"""Stands for a protocol in rows of what a run says without an evaluation protocol of its own."""
ACROSS_DOMAINS = ("hold out", "train samples")
"""Settings in which runs of one row of a cross-domain table differ: the domain left out, and so the images left.

What else follows from the domain, such as the epochs of a budget of steps, may differ as well (`label_runs`).
"""
MOST_PARTS = 8
"""Columns of single held-out domains that one panel has at most; what would be more is left to the results' details."""
_OF_A_RUN = {"seed": PROTOCOLS, "domains": ("cross-domain",)}
"""Setting of a result -> the protocols in which it tells values within one table apart, not tables."""

Results = Mapping[Path, Sequence[ProtocolResult]]
"""Path of a run -> its results."""
BySeed = Mapping[int, float]
"""Seed -> value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One value of one run.

    Attributes:
        label: of the run; runs that differ in their seed alone share it.
        seed: of the run.
        run: its directory.
        protocol: one of `PROTOCOLS`, or `TRAINING`.
        measure: name of what was measured.
        value: in the measure's unit; None where it is undefined, such as the mAP of images without a positive label.
        settings: JSON of the protocol's settings that must be equal for two values to be comparable.
        domain: that the value is of; empty where it is of all, or where the data set has none.
        depth: of the tap in the student, in [0, 1]; None where the value is not of a tap.
    """

    label: str
    seed: int
    run: Path
    protocol: str
    measure: str
    value: float | None
    settings: str = "{}"
    domain: str = ""
    depth: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows in the order in which they are shown."""

    rows: tuple[Row, ...]

    def where(self, **columns: object) -> Table:
        """Return the rows whose columns have these values."""
        wanted = columns.items()
        return Table(tuple(row for row in self.rows if all(getattr(row, name) == value for name, value in wanted)))

    def distinct(self, column: str) -> list[Any]:
        """Return the different values of a column, in the order of their first appearance."""
        return list(dict.fromkeys(getattr(row, column) for row in self.rows))

    def split(self, *columns: str) -> dict[tuple[Any, ...], Table]:
        """Return values of the columns -> the rows that have them."""
        parts: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            parts.setdefault(tuple(getattr(row, name) for name in columns), []).append(row)
        return {key: Table(tuple(rows)) for key, rows in parts.items()}

    def by_seed(self) -> dict[int, float]:
        """Return the value of each seed that has one; several values of a seed count once, by their mean."""
        values: dict[int, list[float]] = {}
        for row in self.rows:
            if row.value is not None:
                values.setdefault(row.seed, []).append(row.value)
        return {seed: math.fsum(each) / len(each) for seed, each in values.items()}

    def mean(self) -> float | None:
        """Return the mean of all values, whatever their seeds; None where there is none."""
        values = [row.value for row in self.rows if row.value is not None]
        return math.fsum(values) / len(values) if values else None


def aggregate(table: Table, *by: str) -> dict[tuple[Any, ...], Estimate]:
    """Return mean and 95 % Student interval over seeds of each part of the table.

    Args:
        table: of values.
        by: the columns that tell parts apart.

    Returns:
        Values of the columns -> estimate; without parts that have no value.
    """
    estimates = {key: estimate(list(part.by_seed().values())) for key, part in table.split(*by).items()}
    return {key: value for key, value in estimates.items() if value is not None}


def over_domains(by_domain: Sequence[BySeed]) -> dict[int, float]:
    """Return the mean over domains of each seed that has them all: a mean over fewer domains is another number."""
    complete = sorted(set.intersection(*(set(values) for values in by_domain))) if by_domain else []
    return {seed: math.fsum(values[seed] for values in by_domain) / len(by_domain) for seed in complete}


def training_table(groups: Sequence[Group]) -> Table:
    """Return what runs say of themselves: `map_seen`, `map_heldout`, `pointing`, `step_ms`, `seconds` and their parts.

    Of the runs that count in their group: the last validation of a run that was stopped is not its final score.
    `map` has a row for each domain, `tap_pointing` and `tap_mass_in_mask` one for each tap.
    """
    rows = []
    for group in groups:
        for run in group.counted:
            template = Row(
                label=group.label, seed=run.config.seed, run=run.path, protocol=TRAINING, measure="", value=None
            )
            values = {
                "map_seen": run.map_seen,
                "map_heldout": run.map_heldout,
                "pointing": run.pointing,
                "step_ms": run.step_ms,
                "seconds": run.summary.seconds if run.summary else None,
            }
            rows += [replace(template, measure=name, value=value) for name, value in values.items()]
            if run.scores is None:
                continue
            domains = run.scores.map_per_domain.items()
            rows += [replace(template, measure="map", domain=name, value=value) for name, value in domains]
            for tap in run.scores.taps:
                of_tap = {"tap_pointing": tap.pointing, "tap_mass_in_mask": tap.mass_in_mask}
                rows += [replace(template, measure=n, depth=tap.depth, value=value) for n, value in of_tap.items()]
    return Table(tuple(rows))


def result_table(groups: Sequence[Group], results: Results) -> Table:
    """Return every score of every result, protocols in the order of `PROTOCOLS`.

    Rows of protocol `cross-domain` have labels of their own, which runs that left out other domains share.

    Args:
        groups: of runs.
        results: path of a run -> its results; runs without any may be missing.
    """
    variants: dict[tuple[str, str], list[tuple[str, Run, ProtocolResult]]] = {}
    for group in groups:
        for run in group.runs:
            for result in results.get(run.path, ()):
                variants.setdefault((result.protocol, _shared_key(result)), []).append((group.label, run, result))
    rows = []
    for (protocol, settings), members in sorted(variants.items(), key=_order):
        if protocol == "cross-domain":
            members = _relabelled(members)
        rows += [
            Row(
                label=label,
                seed=run.config.seed,
                run=run.path,
                protocol=protocol,
                measure=measure,
                value=value,
                settings=settings,
                domain=domain,
            )
            for label, run, result in members
            for measure, domain, value in _values(run, result)
        ]
    return Table(tuple(rows))


def _values(run: Run, result: ProtocolResult) -> list[tuple[str, str, float | None]]:
    """Return (measure, domain, value) of a result, the parts of its held-out scores last."""
    whole = left_out(result) if result.protocol == "cross-domain" else ""
    values = [(each.name, whole, result.scores.get(each.name)) for each in MEASURES[result.protocol]]
    for measure in PARTS if result.protocol == "classification" else ():
        name = f"{measure.removesuffix('_heldout')}_per_domain"
        origin = str(run.path / EVALUATION / result.file_name)
        scores = read_as(dict[str, Share | None], result.details.get(name) or {}, origin, f"details.{name}")
        seen = run.config.raw.get("seen_domains", set(scores) - set(run.config.hold_out))
        held_out = [domain for domain in scores if domain not in seen]
        teacher = read_as(
            dict[str, Share | None], result.details.get(TEACHER + name) or {}, origin, f"details.{TEACHER}{name}"
        )
        if len(held_out) > 1:  # of a single one the merged score is the same
            values += [(f"{measure}_{domain}", domain, scores[domain]) for domain in held_out]
            values += [(f"{TEACHER}{measure}_{each}", each, teacher[each]) for each in held_out if each in teacher]
    return values


def left_out(result: ProtocolResult) -> str:
    """Return the domains that a result of `cross-domain` is of."""
    return "+".join(result.settings.get("domains") or ["held out"])


def _relabelled(members: Sequence[tuple[str, Run, ProtocolResult]]) -> list[tuple[str, Run, ProtocolResult]]:
    runs = {run.path: run for _, run, _ in members}
    relabelled = []
    for label, of_label in label_runs(list(runs.values()), across=ACROSS_DOMAINS).items():
        paths = {run.path for run in of_label}
        own = [(label, run, result) for _, run, result in members if run.path in paths]
        relabelled += sorted(own, key=lambda member: member[1].config.seed)
    return relabelled


def _shared(result: ProtocolResult) -> dict[str, Any]:
    return {k: value for k, value in result.settings.items() if result.protocol not in _OF_A_RUN.get(k, ())}


def _shared_key(result: ProtocolResult) -> str:
    return json.dumps(_shared(result), sort_keys=True)


def _order(variant: tuple[tuple[str, str], object]) -> tuple[int, list[tuple[str, float, str]]]:
    """Protocols as listed; among their settings numbers by size, all else as text."""
    (protocol, key), _ = variant
    settings = [
        (name, value, "") if isinstance(value, int | float) else (name, 0.0, json.dumps(value))
        for name, value in sorted(json.loads(key).items())
    ]
    return PROTOCOLS.index(protocol), settings


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelRow:
    """One label: its colour, the configuration of one of its runs, the seeds scored, and for each column its values."""

    label: str
    slot: int
    config: RunConfig
    seeds: tuple[int, ...]
    cells: tuple[BySeed, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One protocol with one choice of settings, labels by measures.

    Attributes:
        settings: of the protocol.
        differing: names of those in which this protocol's panels differ.
        columns: what was measured, main ones first.
        rows: labels with at least one run that was scored, be it without a value: it may never have got there.
        teacher: for each column the teacher's own value, None where there is none.
        scored: for each column run -> its value, rounded, since two ways to one score differ in their last bits; empty
            for a mean over runs.
        notes: what a reader should know of the columns.
    """

    protocol: str
    settings: Mapping[str, Any]
    differing: tuple[str, ...]
    columns: tuple[Measure, ...]
    rows: tuple[PanelRow, ...]
    teacher: tuple[float | None, ...]
    scored: tuple[Mapping[Path, float], ...]
    notes: tuple[str, ...] = ()

    @property
    def across(self) -> tuple[str, ...]:
        """Settings in which runs of one row differ, and so runs of two rows may."""
        return ACROSS_DOMAINS if self.protocol == "cross-domain" else ()

    def without(self, places: Collection[int]) -> Panel:
        """Return the panel without the columns at these places."""

        def kept(of_columns: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(each for place, each in enumerate(of_columns) if place not in places)

        rows = tuple(replace(row, cells=kept(row.cells)) for row in self.rows)
        columns, teacher, scored = kept(self.columns), kept(self.teacher), kept(self.scored)
        return replace(self, columns=columns, rows=rows, teacher=teacher, scored=scored)


def panels(groups: Sequence[Group], results: Results, only: Sequence[str] = ()) -> list[Panel]:
    """Return a panel for each protocol and choice of settings that at least one run has a value of.

    Args:
        groups: of runs.
        results: path of a run -> its results.
        only: protocols to keep; empty: all.
    """
    table = result_table(groups, results)
    known = {run.path: (group.slot, run) for group in groups for run in group.runs}
    made = []
    for (protocol,), of_protocol in table.split("protocol").items():
        if only and protocol not in only:
            continue
        variants = of_protocol.split("settings")
        settings = [json.loads(key) for (key,) in variants]
        names = sorted({name for each in settings for name in each})
        differing = tuple(n for n in names if len({json.dumps(each.get(n), sort_keys=True) for each in settings}) > 1)
        made += [
            _panel(protocol, each, differing, part, known)
            for each, part in zip(settings, variants.values(), strict=True)
        ]
    return [panel for panel in made if panel.columns]


def _panel(
    protocol: str,
    settings: Mapping[str, Any],
    differing: tuple[str, ...],
    table: Table,
    known: Mapping[Path, tuple[int, Run]],
) -> Panel:
    columns, notes = _columns(protocol, table)
    domains = sorted(table.distinct("domain"))
    values, empty = table.split("label", "measure", "domain"), Table(())
    rows = []
    for (label,), of_label in table.split("label").items():
        cells = [
            over_domains([values.get((label, measure, d), empty).by_seed() for d in domains])
            if domain is None
            else values.get((label, measure, domain), empty).by_seed()
            for measure, domain, _ in columns
        ]
        slot, first = min((known[path] for path in of_label.distinct("run")), key=lambda each: each[1].config.hold_out)
        seeds = tuple(sorted(of_label.distinct("seed")))
        rows.append(PanelRow(label=label, slot=slot, config=first.config, seeds=seeds, cells=tuple(cells)))
    by_run = {key: part.split("run") for key, part in table.split("measure", "domain").items()}
    scored = [
        {run: round(value, 6) for (run,), part in by_run.get(key, {}).items() if (value := part.mean()) is not None}
        for key in ((measure, domain) for measure, domain, _ in columns)
    ]
    panel = Panel(
        protocol=protocol,
        settings=settings,
        differing=differing,
        columns=tuple(column for _, _, column in columns),
        rows=tuple(rows),
        teacher=tuple(table.where(measure=TEACHER + column.name).mean() for _, _, column in columns),
        scored=tuple(scored),
        notes=notes,
    )
    panel = panel.without({place for place in range(len(columns)) if not any(row.cells[place] for row in rows)})
    return replace(panel, columns=without_domains(panel.columns))


_Column = tuple[str, str | None, Measure]
"""Measure, domain and what is shown; domain None is the mean over several."""


def _columns(protocol: str, table: Table) -> tuple[list[_Column], tuple[str, ...]]:
    """Return the columns of a panel, and notes on those that it does not have."""
    measures = [measure for measure in MEASURES[protocol] if not measure.name.startswith(TEACHER)]
    domains = sorted(table.distinct("domain"))
    columns: list[_Column] = []
    if protocol != "cross-domain":
        held_out = [domain for domain in domains if domain]
        shown = [name for name in PARTS if any(row.value is not None for row in table.rows if _is_part(row, name))]
        all_shown = len(shown)
        while len(shown) * len(held_out) > MOST_PARTS:
            shown.pop()
        for measure in measures:
            columns.append((measure.name, "", measure))
            for domain in held_out if measure.name in shown else ():
                name, heading = f"{measure.name}_{domain}", f"{PARTS[measure.name]} {domain}"
                columns.append((name, domain, replace(measure, name=name, heading=heading, part_of=measure.name)))
        if len(shown) == all_shown:
            return columns, ()
        kept = f"only {PARTS[shown[0]].split(',')[0]} is" if shown else "none is"
        note = (
            f"{protocol}: of {len(held_out)} held-out domains {kept} shown one by one; the details of results have it."
        )
        return columns, (note,)
    for measure in measures:
        name, heading = measure.name, measure.heading
        if len(domains) == 1:
            columns.append((name, domains[0], replace(measure, heading=f"{heading}: {domains[0]}")))
            continue
        columns.append((name, None, replace(measure, heading=f"{heading}: mean of {len(domains)}")))
        columns += [(name, d, replace(measure, name=f"{name}_{d}", heading=f"{heading}: {d}")) for d in domains]
    return columns, ()


def _is_part(row: Row, measure: str) -> bool:
    return bool(row.domain) and row.measure == f"{measure}_{row.domain}"

"""Compare runs by objective: every protocol's measures, their differences to a control, and what training cost.

Runs that differ in their seed alone are one row. A difference is paired by seed where both sides have the same seeds,
else it is Welch's; its p value is of a two-sided t test, and is also corrected for the number of all tests of the
comparison by Holm's method.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import RunError, UnknownNameError
from lfi_pipeline.evaluation.metrics import PROTOCOLS, Measure
from lfi_pipeline.evaluation.results import read_results
from lfi_pipeline.report.groups import Group, choose_controls, gather, rivals
from lfi_pipeline.report.protocol_tables import Missing, RawTable, applies, missing_results, protocol_tables
from lfi_pipeline.report.runs import load_run
from lfi_pipeline.report.statistics import Difference, Estimate, difference, estimate, holm


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """One group's.

    Attributes:
        seeds: how many runs the times are means of.
        control: label of the group that `ratio` refers to, None for a control.
        backbone, head, kept: parameters of the student and of queries that stay after training.
        added: parameters that training needs and that are dropped after it.
        step_ms: median milliseconds of a step.
        ratio: mean step time over the control's.
        seconds: of the whole training.
    """

    label: str
    slot: int
    seeds: int
    control: str | None
    backbone: int | None
    head: int | None
    kept: int | None
    added: int | None
    step_ms: Estimate | None
    ratio: float | None
    seconds: Estimate | None


def costs_of(groups: Sequence[Group], controls: Mapping[str, str]) -> list[Cost]:
    """Return the costs of the groups, in their order; `controls` is label -> label of the control."""
    times = {group.label: group.estimate(lambda run: run.step_ms) for group in groups}
    costs = []
    for group in groups:
        summary = next((run.summary for run in group.runs if run.summary is not None), None)
        control = controls.get(group.label)
        own, other = times[group.label], times.get(control or "")
        costs.append(
            Cost(
                label=group.label,
                slot=group.slot,
                seeds=len(group.runs),
                control=control,
                backbone=summary.backbone if summary else None,
                head=summary.head if summary else None,
                kept=summary.kept_queries if summary else None,
                added=summary.queries - summary.kept_queries + summary.terms if summary else None,
                step_ms=own,
                ratio=own.mean / other.mean if own and other else None,
                seconds=group.estimate(lambda run: run.summary.seconds if run.summary else None),
            )
        )
    return costs


LEVEL = 0.05
"""p values below it are marked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """The difference of a group to `control` in one measure; `p_holm` is its p value after Holm's correction."""

    control: str
    gap: Difference
    p_holm: float | None

    @property
    def mark(self) -> str:
        """`**` where p stays under `LEVEL` after correction, `*` where it is under it alone, else nothing."""
        p, corrected = self.gap.p, self.p_holm
        if p is None or corrected is None or p >= LEVEL:
            return ""
        return "**" if corrected < LEVEL else "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One group in one measure.

    Attributes:
        value: mean and interval over seeds; None where no seed has one.
        gap: the difference to the group's control, None for the control itself and where either has no value.
        best: the difference to the best of all controls in this measure, for groups that learn the teacher's maps.
    """

    value: Estimate | None
    gap: Gap | None = None
    best: Gap | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One group: its label, colour, the seeds that were scored, its control's label, and one cell a column."""

    label: str
    slot: int
    seeds: tuple[int, ...]
    control: str | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One protocol with one choice of settings.

    Attributes:
        title: the protocol, and the settings that tell it from the protocol's other blocks.
        settings: all of the protocol's settings.
        columns: what was measured.
        rows: the groups.
        teacher: for each column the teacher's own value, for reference; None where there is none.
    """

    protocol: str
    title: str
    settings: Mapping[str, Any]
    columns: tuple[Measure, ...]
    rows: tuple[Row, ...]
    teacher: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All blocks, what training cost, and what a reader should know.

    Attributes:
        tests: how many p values there are; Holm's correction is for this number.
        missing: results that are not there, each with the command that makes them.
    """

    blocks: tuple[Block, ...]
    costs: tuple[Cost, ...]
    tests: int
    notes: tuple[str, ...]
    missing: tuple[Missing, ...]


def compare(runs: Sequence[Path], *, control: str | None = None, protocols: Sequence[str] = ()) -> Comparison:
    """Compare `runs`.

    Args:
        runs: run directories.
        control: label of the group that the others are compared with; by default the runs of objective `none` with the
            same student and data.
        protocols: those to compare; empty: all that have results.

    Raises:
        RunError: no run, or one that cannot be read.
        UnknownNameError: no such control or protocol.
    """
    if not runs:
        raise RunError("A comparison needs at least one run directory, got none.")
    groups, notes = gather([load_run(run) for run in runs])
    return compare_groups(groups, notes=notes, control=control, protocols=protocols)


def compare_groups(
    groups: Sequence[Group], *, notes: Sequence[str] = (), control: str | None = None, protocols: Sequence[str] = ()
) -> Comparison:
    """Compare groups that are loaded. Arguments and errors as `compare`."""
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", protocol, PROTOCOLS)
    results = {run.path: read_results(run.path) for group in groups for run in group.runs}
    tables = protocol_tables(groups, results, protocols)
    configs = {group.label: group.config for group in groups}
    # A table that joins groups has labels of its own; a control that is given must be a label of one or the other.
    known = configs | {row.label: row.config for table in tables for row in table.rows}
    chosen = choose_controls(configs if control in (None, *configs) else known, control)
    tests: dict[tuple[int, str, int, str], Difference] = {}
    drafts = [_Draft(table, number, control, tests) for number, table in enumerate(tables)]
    tested = {key: gap.p for key, gap in tests.items() if gap.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    blocks = [draft.block(corrected) for draft in drafts]
    asked = f"`{control}`" if control else "runs of objective none with the same student and data"
    alone = [
        f"{block.title}: nothing is compared, since there are no results of {asked}."
        for block in blocks
        if all(row.control is None for row in block.rows)
        and (control or any(applies(block.protocol, c) for c in configs.values() if c.objective == "none"))
    ]
    return Comparison(
        blocks=tuple(blocks),
        costs=tuple(costs_of(groups, chosen)),
        tests=len(tested),
        notes=(*notes, *alone),
        missing=tuple(missing_results(groups, results, protocols)),
    )


class _Draft:
    """A block whose tests are not corrected yet: the correction needs the tests of all blocks.

    Args:
        table: values by seed.
        number: of the table.
        control: a label that was asked for.
        tests: (number, label, column, control) -> difference; its own are added.
    """

    def __init__(
        self, table: RawTable, number: int, control: str | None, tests: dict[tuple[int, str, int, str], Difference]
    ) -> None:
        self._table, self._number, self._tests = table, number, tests
        self._configs = {row.label: row.config for row in table.rows}
        self._values = {row.label: row.values for row in table.rows}
        absent = control is not None and control not in self._configs
        self._controls = {} if absent else choose_controls(self._configs, control)
        self._best = {}
        for row in table.rows:
            for column in range(len(table.columns)):
                best = self._best_rival(row.label, column)
                self._best[row.label, column] = best
                for other in {self._controls.get(row.label), best} - {None}:
                    assert other is not None
                    gap = difference(row.values[column], self._values[other][column])
                    if gap is not None:
                        tests[number, row.label, column, other] = gap

    def _best_rival(self, label: str, column: int) -> str | None:
        better = self._table.columns[column].higher_is_better
        means = {
            name: score.mean
            for name in rivals(label, self._configs)
            if (score := estimate(list(self._values[name][column].values())))
        }
        if better is None or not means:
            return None
        return max(means, key=lambda name: means[name] if better else -means[name])

    def block(self, corrected: Mapping[tuple[int, str, int, str], float]) -> Block:
        """The finished block."""
        table = self._table

        def gap(label: str, column: int, control: str | None) -> Gap | None:
            key = (self._number, label, column, control or "")
            if key not in self._tests:
                return None
            return Gap(control=control or "", gap=self._tests[key], p_holm=corrected.get(key))

        rows = [
            Row(
                label=row.label,
                slot=row.slot,
                seeds=row.seeds,
                control=self._controls.get(row.label),
                cells=tuple(
                    Cell(
                        value=estimate(list(values.values())),
                        gap=gap(row.label, column, self._controls.get(row.label)),
                        best=gap(row.label, column, self._best[row.label, column]),
                    )
                    for column, values in enumerate(row.values)
                ),
            )
            for row in table.rows
        ]
        apart = ", ".join(f"{name.replace('_', ' ')} {shown(table.settings.get(name))}" for name in table.differing)
        return Block(
            protocol=table.protocol,
            title=f"{table.protocol} ({apart})" if apart else table.protocol,
            settings=table.settings,
            columns=table.columns,
            rows=tuple(rows),
            teacher=table.teacher,
        )


def shown(value: Any) -> str:
    """A setting as people read it; a digest by its first characters."""
    if isinstance(value, list | tuple):
        return "+".join(map(str, value)) or "none"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,}", value):
        return value[:8]
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

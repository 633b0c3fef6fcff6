"""Compare runs by objective: every protocol's measures, their differences to a control, and what training cost.

Runs that differ in their seed alone are one row. A difference is paired by seed where both sides have the same seeds,
else it is Welch's; its p value is of a two-sided t test, and is also corrected for the number of all tests of the
comparison by Holm's method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import RunError, UnknownNameError
from lfi_pipeline.core.options import command_line
from lfi_pipeline.evaluation.metrics import PROTOCOLS, Measure
from lfi_pipeline.evaluation.protocols import read_results
from lfi_pipeline.report.groups import Group, choose_controls, gather, rivals, shown
from lfi_pipeline.report.runs import RunConfig, load_run
from lfi_pipeline.report.statistics import LEVEL, Difference, Estimate, difference, estimate, holm
from lfi_pipeline.report.table import BySeed, Panel, Results, aggregate, panels, training_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one group cost.

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
    means = aggregate(training_table(groups), "label", "measure")
    costs = []
    for group in groups:
        summary = next((run.summary for run in group.runs if run.summary is not None), None)
        control = controls.get(group.label)
        own, other = means.get((group.label, "step_ms")), means.get((control, "step_ms"))
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
                seconds=means.get((group.label, "seconds")),
            )
        )
    return costs


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
class Missing:
    """A result that a comparison could have and has not, and the command that makes it."""

    what: str
    command: str


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
    kept, repeated = _without_repeats(panels(groups, results, protocols))
    configs = {group.label: group.config for group in groups}
    # A panel that joins groups has labels of its own; a control that is named must be a label of one or the other.
    known = configs | {row.label: row.config for panel in kept for row in panel.rows}
    controls = choose_controls(configs if control in (None, *configs) else known, control)
    tests: dict[_Test, Difference] = {}
    drafts = [_Draft(panel, number, control, tests) for number, panel in enumerate(kept)]
    tested = {test: gap.p for test, gap in tests.items() if gap.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    blocks = [draft.block(corrected) for draft in drafts]
    wanted = f"`{control}`" if control else "runs of objective none with the same student and data"
    alone = [
        f"{block.title}: nothing is compared, since there are no results of {wanted}."
        for block in blocks
        if all(row.control is None for row in block.rows)
        and (control or any(applies(block.protocol, c) for c in configs.values() if c.objective == "none"))
    ]
    return Comparison(
        blocks=tuple(blocks),
        costs=tuple(costs_of(groups, controls)),
        tests=len(tested),
        notes=(*notes, *repeated, *alone),
        missing=tuple(missing_results(groups, results, protocols)),
    )


REPEATS: Mapping[str, str] = {"map": "map_heldout", "top1": "top1_heldout"}
"""Measure of `cross-domain` -> measure of `classification` that is the same number where the images are the same."""


def _without_repeats(every: Sequence[Panel]) -> tuple[list[Panel], list[str]]:
    """Leave out columns of `cross-domain` that repeat one of `classification`, and say so.

    A run that left one domain out has one score there. Shown twice it would be tested twice, and every other test would
    pay for it in the correction.
    """
    values: dict[str, list[dict[str, BySeed]]] = {}
    for panel in every:
        for place, column in enumerate(panel.columns) if panel.protocol == "classification" else ():
            values.setdefault(column.name, []).append(_rounded(panel, place))
    kept, notes = [], []
    for panel in every:
        repeated = [
            place
            for place, column in enumerate(panel.columns)
            if panel.protocol == "cross-domain"
            and _rounded(panel, place) in values.get(REPEATS.get(column.name, ""), [])
        ]
        notes += [
            f"{panel.protocol}: {panel.columns[place].heading} is the held-out score of classification: it is shown "
            "and tested there, once."
            for place in repeated
        ]
        places = [place for place in range(len(panel.columns)) if place not in repeated]
        rows = tuple(replace(row, cells=tuple(row.cells[place] for place in places)) for row in panel.rows)
        columns = tuple(panel.columns[place] for place in places)
        if columns:
            teacher = tuple(panel.teacher[place] for place in places)
            kept.append(replace(panel, columns=columns, rows=rows, teacher=teacher))
    return kept, notes


def _rounded(panel: Panel, place: int) -> dict[str, BySeed]:
    """Label -> values by seed of a column, rounded: two ways to one score differ in their last bits."""
    return {row.label: {seed: round(v, 6) for seed, v in row.cells[place].items()} for row in panel.rows}


_Test = tuple[int, str, int, str]
"""Number of a panel, label, column, label that it is compared with."""


class _Draft:
    """A block whose tests are not corrected yet: the correction needs the tests of all blocks.

    Args:
        panel: values by seed.
        number: of the panel.
        control: label that the user named, if any.
        tests: the differences of all blocks; its own are added.
    """

    def __init__(self, panel: Panel, number: int, control: str | None, tests: dict[_Test, Difference]) -> None:
        self._panel, self._number, self._tests = panel, number, tests
        self._configs = {row.label: row.config for row in panel.rows}
        self._cells = {row.label: row.cells for row in panel.rows}
        absent = control is not None and control not in self._configs
        self._controls = {} if absent else choose_controls(self._configs, control)
        self._best = {}
        for row in panel.rows:
            others = rivals(row.label, self._configs)
            for column in range(len(panel.columns)):
                best = self._best_of(others, column)
                self._best[row.label, column] = best
                for other in {self._controls.get(row.label), best} - {None}:
                    assert other is not None
                    gap = difference(row.cells[column], self._cells[other][column])
                    if gap is not None:
                        tests[number, row.label, column, other] = gap

    def _best_of(self, labels: Iterable[str], column: int) -> str | None:
        better = self._panel.columns[column].higher_is_better
        means = {name: score.mean for name in labels if (score := estimate(list(self._cells[name][column].values())))}
        if better is None or not means:
            return None
        return max(means, key=lambda name: means[name] if better else -means[name])

    def block(self, corrected: Mapping[_Test, float]) -> Block:
        """Return the finished block."""
        panel = self._panel

        def gap(label: str, column: int, control: str | None) -> Gap | None:
            test = (self._number, label, column, control or "")
            if test not in self._tests:
                return None
            return Gap(control=control or "", gap=self._tests[test], p_holm=corrected.get(test))

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
                    for column, values in enumerate(row.cells)
                ),
            )
            for row in panel.rows
        ]
        apart = ", ".join(f"{name.replace('_', ' ')} {shown(panel.settings.get(name))}" for name in panel.differing)
        return Block(
            protocol=panel.protocol,
            title=f"{panel.protocol} ({apart})" if apart else panel.protocol,
            settings=panel.settings,
            columns=panel.columns,
            rows=tuple(rows),
            teacher=panel.teacher,
        )


_NEEDS = {
    "grounding": {"targets": "TARGETS"},
    "zero-shot": {"targets": "TARGETS"},
    "convergence": {"reference": "RUN"},
}
"""Options without which the protocol does not run."""


def missing_results(groups: Sequence[Group], results: Results, only: Sequence[str] = ()) -> list[Missing]:
    """Return what is missing: a protocol that other runs have, and, where no run has any result, classification.

    Args:
        groups: of runs.
        results: path of a run -> its results.
        only: protocols to look at; empty: all.
    """
    there = {result.protocol for of_run in results.values() for result in of_run}
    wanted = [protocol for protocol in PROTOCOLS if protocol in (only or there or ("classification",))]
    missing = []
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
        listed = "; ".join(f"{label} (seed {', '.join(of)})" for label, of in seeds.items())
        needed = _NEEDS.get(protocol, {})
        command = command_line("evaluate", *(run.path for _, run in lacking), protocol=protocol, **needed)
        missing.append(Missing(what=f"{protocol}: no result of {listed}.", command=command))
    return missing


def applies(protocol: str, config: RunConfig) -> bool:
    """Whether the protocol can score such a run at all; in doubt, it can."""
    if protocol == "zero-shot":
        return "presence" in config.objective.split("+")
    if protocol == "convergence":  # its reference is the control
        return config.objective != "none"
    return True

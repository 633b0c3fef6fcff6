"""Compare runs by objective: every protocol's measures, their differences to a control, and what training cost.

Runs that differ in their seed alone are one row. A difference is paired by seed where both sides have the same seeds,
else it is Welch's; its p value is of a two-sided t test, and is also corrected for the number of all tests of the
comparison by Holm's method. Where primary measures are named, they alone are tested, and the rest is exploratory.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import RunError, UnknownNameError
from lfi_pipeline.evaluation.metrics import PROTOCOLS, Measure, check_primary, is_primary
from lfi_pipeline.evaluation.protocols import read_results
from lfi_pipeline.report.groups import (
    Group,
    Missing,
    applies,
    choose_controls,
    gather,
    listed,
    missing_results,
    rivals,
    shown,
)
from lfi_pipeline.report.runs import load_run
from lfi_pipeline.report.statistics import LEVEL, Difference, Estimate, difference, estimate, holm
from lfi_pipeline.report.table import Panel, panels
from lfi_pipeline.report.views import Cost, costs_of


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
        tested: for each column whether its differences are tested.
    """

    protocol: str
    title: str
    settings: Mapping[str, Any]
    columns: tuple[Measure, ...]
    rows: tuple[Row, ...]
    teacher: tuple[float | None, ...]
    tested: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All blocks, what training cost, and what a reader should know.

    Attributes:
        tests: how many p values there are; Holm's correction is for this number.
        missing: results that are not there, each with the command that makes them.
        primary: the measures that were named beforehand, as they were named; None: none were, and all are tested.
    """

    blocks: tuple[Block, ...]
    costs: tuple[Cost, ...]
    tests: int
    notes: tuple[str, ...]
    missing: tuple[Missing, ...]
    primary: tuple[str, ...] | None = None

    @property
    def caption(self) -> str:
        """Which differences are tested, and what the others are."""
        if self.primary:
            return (
                f"Primary, named beforehand: {', '.join(self.primary)}. All else is exploratory: its differences have "
                "their interval alone, no p value and no mark."
            )
        parts = any(column.part_of for block in self.blocks for column in block.columns)
        single = ", those of single held-out domains aside, which are parts of others" if parts else ""
        return (
            f"No primary measures were named, so all are tested alike{single}. The fair way is to name a few before anything "
            "is scored (option primary): they alone are tested then, and the rest is exploratory."
        )


def compare(
    runs: Sequence[Path],
    *,
    control: str | None = None,
    protocols: Sequence[str] = (),
    primary: Sequence[str] = (),
) -> Comparison:
    """Compare `runs`.

    Args:
        runs: run directories.
        control: label of the group that the others are compared with; by default the runs of objective `none` with the
            same student and data.
        protocols: those to compare; empty: all that have results.
        primary: measures that were named beforehand, as `check_primary` takes them: they alone are tested and count in
            the correction. Empty: all are but parts, such as the scores of single held-out domains.

    Raises:
        RunError: no run, or one that cannot be read.
        UnknownNameError: no such control, protocol or measure.
    """
    if not runs:
        raise RunError("A comparison needs at least one run directory, got none.")
    groups, notes = gather([load_run(run) for run in runs])
    return compare_groups(groups, notes=notes, control=control, protocols=protocols, primary=primary)


def compare_groups(
    groups: Sequence[Group],
    *,
    notes: Sequence[str] = (),
    control: str | None = None,
    protocols: Sequence[str] = (),
    primary: Sequence[str] = (),
) -> Comparison:
    """Compare groups that are loaded. Arguments and errors as `compare`."""
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", protocol, PROTOCOLS)
    results = {run.path: read_results(run.path) for group in groups for run in group.runs}
    every = panels(groups, results)
    at_hand = {name: {c.name for panel in every if panel.protocol == name for c in panel.columns} for name in PROTOCOLS}
    check_primary(primary, at_hand)
    asked_for = [panel for panel in every if not protocols or panel.protocol in protocols]
    kept, repeated = without_repeats(asked_for, primary)
    configs = {group.label: group.config for group in groups}
    # A panel that joins groups has labels of its own; a control that is named must be a label of one or the other.
    known = configs | {row.label: row.config for panel in kept for row in panel.rows}
    controls = choose_controls(configs if control in (None, *configs) else known, control)
    tests: dict[_Test, Difference] = {}
    drafts = [_Draft(panel, number, control, primary, tests) for number, panel in enumerate(kept)]
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
    shown_of = {run: {result.protocol for result in of} & set(protocols or PROTOCOLS) for run, of in results.items()}
    stopped = [(g, run) for g in groups for run in g.runs if run.summary is None and shown_of[run.path]]
    if stopped:
        alone.append(f"Not finished, and compared as they were when they were scored: {listed(stopped)}.")
    scored = [(column.name, panel.protocol) for panel in asked_for for column in panel.columns]
    absent = [each for each in primary if not any(is_primary(*one, [each]) for one in scored)]
    if absent:
        alone.append(f"Primary measures without a result here: {', '.join(absent)}.")
    return Comparison(
        blocks=tuple(blocks),
        costs=tuple(costs_of(groups, controls)),
        tests=len(tested),
        notes=(*notes, *(note for panel in asked_for for note in panel.notes), *repeated, *alone),
        missing=tuple(missing_results(groups, results, protocols)),
        primary=tuple(primary) or None,
    )


REPEATS: Mapping[str, str] = {"map": "map_heldout", "top1": "top1_heldout"}
"""Measure of `cross-domain` -> measure of `classification` that is the same number where the images are the same."""
_PROBES = ("knn_", "linear_")


def without_repeats(every: Sequence[Panel], primary: Collection[str] = ()) -> tuple[list[Panel], list[str]]:
    """Leave out columns that repeat others, and say so.

    Shown twice a measurement would be tested twice, and every other test would pay for it in the correction. Columns
    repeat one another where they are of the same data set and weights and every run has the same value in both: the
    held-out scores of `classification` are those of `cross-domain` where it scored the same images, and without its
    probes `classification` is the same at whatever settings these have.

    Args:
        every: panels.
        primary: names of measures; a column that is among them stays, and what repeats it goes.
    """
    gone: dict[int, set[int]] = {number: set() for number in range(len(every))}
    notes: list[str] = []
    classified = [number for number, panel in enumerate(every) if panel.protocol == "classification"]
    for first, second in itertools.combinations(sorted(classified, key=lambda n: -len(every[n].columns)), 2):
        if repeated := _same_heads(every[first], every[second]) - gone[second]:
            gone[second] |= repeated
            notes.append(
                "classification: scores without probes do not depend on the probes' settings: they are shown and "
                "tested once."
            )
    for one, other in itertools.product(range(len(every)), classified):
        crossed, panel = every[one], every[other]
        for several, single in _same_images(crossed, panel) if crossed.protocol == "cross-domain" else ():
            if single in gone[other]:
                continue
            merged = {run for place in several for run in crossed.scored[place]}
            inside = {place for place in several if crossed.scored[place].keys() <= panel.scored[single].keys()}
            whole = panel.scored[single].keys() <= merged
            named = is_primary(panel.columns[single].name, panel.protocol, primary)
            rival = any(is_primary(crossed.columns[place].name, crossed.protocol, primary) for place in several)
            by_domain = rival if named != rival else len(several) > 1
            if whole and (by_domain or not inside):
                gone[other].add(single)
                heading = panel.columns[single].heading
                notes.append(
                    f"{heading}, of classification is told by cross-domain: it is shown and tested there, once."
                )
            else:
                gone[one] |= inside
                notes += [
                    f"{crossed.protocol}: {crossed.columns[place].heading} is the held-out score of classification: it "
                    "is shown and tested there, once."
                    for place in sorted(inside)
                ]
    kept = [panel.without(gone[number]) for number, panel in enumerate(every)]
    return [panel for panel in kept if panel.columns], list(dict.fromkeys(notes))


def _scored_alike(first: Panel, second: Panel, *names: str) -> bool:
    return all(first.settings.get(name) == second.settings.get(name) for name in ("dataset", "weights", *names))


def _same_heads(first: Panel, second: Panel) -> set[int]:
    """Return the places in `second` of scores of the head that `first` has as well."""
    if not _scored_alike(first, second, "split"):
        return set()
    scores = {column.name: scored for column, scored in zip(first.columns, first.scored, strict=True)}
    columns = [(place, each.name) for place, each in enumerate(second.columns) if not each.name.startswith(_PROBES)]
    return {place for place, name in columns if second.scored[place].items() <= scores.get(name, {}).items()}


def _same_images(crossed: Panel, panel: Panel) -> list[tuple[list[int], int]]:
    """Return (columns of `cross-domain`, column of `classification`) that are the same scores of the same images.

    Every measure that both have must agree: with few images a single accuracy may well do so by chance.
    """
    pairs = []
    places = {column.name: place for place, column in enumerate(panel.columns)}
    for measure, name in REPEATS.items() if _scored_alike(crossed, panel) else ():
        several = [
            place
            for place, column in enumerate(crossed.columns)
            if crossed.scored[place] and (column.name == measure or column.name.startswith(f"{measure}_"))
        ]
        if not several or name not in places:
            continue
        scored, merged = panel.scored[places[name]], [pair for s in several for pair in crossed.scored[s].items()]
        both = [scored[run] == value for run, value in merged if run in scored]
        if not both or not all(both):
            return []
        pairs.append((several, places[name]))
    return pairs


_Test = tuple[int, str, int, str]
"""Number of a panel, label, column, label that it is compared with."""


class _Draft:
    """A block whose tests are not corrected yet: the correction needs the tests of all blocks.

    Args:
        panel: values by seed.
        number: of the panel.
        control: label that the user named, if any.
        primary: names of the measures that are tested; empty: all but parts.
        tests: the differences of all blocks; its own are added, without a p value where they are not tested.
    """

    def __init__(
        self,
        panel: Panel,
        number: int,
        control: str | None,
        primary: Collection[str],
        tests: dict[_Test, Difference],
    ) -> None:
        self._tested = tuple(
            is_primary(column.name, panel.protocol, primary) if primary else not column.part_of
            for column in panel.columns
        )
        self._panel, self._number, self._tests = panel, number, tests
        self._configs = {row.label: row.config for row in panel.rows}
        self._cells = {row.label: row.cells for row in panel.rows}
        absent = control is not None and control not in self._configs
        self._controls = {} if absent else choose_controls(self._configs, control, panel.across)
        self._best = {}
        for row in panel.rows:
            others = rivals(row.label, self._configs, panel.across)
            for column in range(len(panel.columns)):
                best = self._best_of(others, column)
                self._best[row.label, column] = best
                for other in {self._controls.get(row.label), best} - {None}:
                    assert other is not None
                    gap = difference(row.cells[column], self._cells[other][column])
                    if gap is not None:
                        gap = gap if self._tested[column] else replace(gap, p=None)
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
            tested=self._tested,
        )

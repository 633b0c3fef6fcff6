"""Which numbers the page shows: the leaderboard's columns, and what goes into each chart (geometry: `charts`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.report.charts import Chart, Crossing, DotChart, Line, draw_charts, interval_chart, line_chart, plain
from lfi_pipeline.report.compare import Comparison
from lfi_pipeline.report.groups import Group
from lfi_pipeline.report.runs import TrainPoint
from lfi_pipeline.report.statistics import Estimate, mean_curve, thin
from lfi_pipeline.report.table import Table, aggregate
from lfi_pipeline.report.text import MISSING, millions, points, settings_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One value. `dot` is (low, mean, high) in per cent of the column's scale, for the interval drawing."""

    text: str
    interval: str = ""
    best: bool = False
    dot: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A heading, what it means, and its cells in the order of the groups."""

    name: str
    hint: str
    cells: tuple[Cell, ...]


def leaderboard(groups: Sequence[Group], table: Table) -> list[Column]:
    """The columns that at least one label has a value in; `table` is `training_table(groups)`."""
    estimates = aggregate(table.where(domain="", depth=None), "measure", "label")
    by_measure = {
        measure: [estimates.get((measure, group.label)) for group in groups]
        for measure in ("map_seen", "map_heldout", "pointing", "step_ms")
    }
    some_held_out = any(by_measure["map_heldout"])
    seen = "domains seen in training" if some_held_out else "validation split"
    columns = [
        _scores("mAP seen" if some_held_out else "mAP", f"mean average precision, {seen}", by_measure["map_seen"]),
        _scores("mAP held-out", "mean average precision, domains held out of training", by_measure["map_heldout"]),
        _scores(
            "pointing",
            "words whose peak in the last tap's map lies in the object's mask, %",
            by_measure["pointing"],
        ),
        _parameters(groups),
        _time(groups, by_measure["step_ms"]),
    ]
    return [column for column in columns if column is not None]


def _scores(name: str, hint: str, scores: Sequence[Estimate | None]) -> Column | None:
    known = [score for score in scores if score is not None]
    if not known:
        return None
    best = max(score.mean for score in known)
    top = min(1.0, max(score.high or score.mean for score in known)) or 1.0
    cells = []
    for score in scores:
        if score is None:
            cells.append(Cell(text=MISSING))
            continue
        low, mean, high = (
            100 * min(max(v if v is not None else score.mean, 0.0) / top, 1.0)
            for v in (score.low, score.mean, score.high)
        )
        cells.append(
            Cell(
                text=points(score.mean),
                interval=f"± {points(score.half)}" if score.half is not None else "one seed",
                best=len(known) > 1 and score.mean == best,
                dot=(round(low, 1), round(mean, 1), round(high, 1)) if len(known) > 1 else None,
            )
        )
    return Column(name=name, hint=hint, cells=tuple(cells))


def _parameters(groups: Sequence[Group]) -> Column | None:
    cells = []
    for group in groups:
        summary = next((run.summary for run in group.runs if run.summary is not None), None)
        if summary is None:
            cells.append(Cell(text=MISSING))
            continue
        queries = f"+ {millions(summary.queries)} in training" if summary.queries else ""
        cells.append(Cell(text=f"{millions(summary.backbone)} / {millions(summary.head)}", interval=queries))
    if all(cell.text == MISSING for cell in cells):
        return None
    hint = "backbone / head; the interaction queries serve in training only"
    return Column(name="parameters", hint=hint, cells=tuple(cells))


def _time(groups: Sequence[Group], times: Sequence[Estimate | None]) -> Column | None:
    known = [time for time in times if time is not None]
    if not known:
        return None
    base = next((t.mean for g, t in zip(groups, times, strict=True) if t and g.config.objective == "none"), None)
    cells = []
    for time in times:
        if time is None:
            cells.append(Cell(text=MISSING))
            continue
        ratio = f"{time.mean / base:.2f}× none" if base else ""
        cells.append(Cell(text=f"{time.mean:.1f} ms", interval=ratio, best=_is_fastest(time, known)))
    hint = "median milliseconds of a training step, and its ratio to none; bold where its interval is below all others"
    return Column(name="step time", hint=hint, cells=tuple(cells))


def _is_fastest(time: Estimate, times: Sequence[Estimate]) -> bool:
    """Whether the interval of `time` lies below all the others'; a single seed has no interval, and so does not."""
    others = [other for other in times if other is not time]
    return bool(others) and all(
        time.high is not None and other.low is not None and time.high < other.low for other in others
    )


def learning_curves(groups: Sequence[Group], crossing: Crossing | None) -> list[Chart]:
    """Validation mAP over steps, seen and held-out domains on one scale; the band is lowest to highest."""
    charts = []
    curves = {heldout: [group.curve(heldout) for group in groups] for heldout in (False, True)}
    top = max((row[3] for both in curves.values() for curve in both for row in curve), default=0.0)
    seen = "Seen domains" if any(curves[True]) else "Validation"
    for heldout, title in ((False, seen), (True, "Held-out domains")):
        lines = [
            Line(
                label=group.label,
                slot=group.slot,
                points=[(step, mean) for step, mean, _, _ in curve],
                band=[(step, low, high) for step, _, low, high in curve] if len(group.counted) > 1 else (),
            )
            for group, curve in zip(groups, curves[heldout], strict=True)
        ]
        mark = None if heldout else crossing
        chart = line_chart(lines, title=f"{title}: mAP", x_label="training steps", crossing=mark, y_top=top)
        charts += [chart] if chart else []
    return charts


def loss_charts(groups: Sequence[Group]) -> list[tuple[str, list[Chart]]]:
    """Small multiples of the training losses: one panel a label, the other labels behind it."""
    picks: list[tuple[str, Callable[[TrainPoint], float | None]]] = [
        ("Task loss", lambda point: point.task_loss),
        ("Interaction loss", lambda point: point.interaction_loss),
    ]
    rows = []
    for name, pick in picks:
        curves: dict[str, list[tuple[float, float]]] = {}
        for group in groups:
            logged = [
                [(float(p.step), value) for p in run.train if (value := pick(p)) is not None] for run in group.counted
            ]
            mean = [(step, value) for step, value, _, _ in mean_curve([curve for curve in logged if curve])]
            if curve := thin(mean, 60):
                curves[group.label] = curve
        top = max((value for curve in curves.values() for _, value in curve), default=0.0)
        charts = []
        for group in groups:
            if group.label not in curves:
                continue
            ghosts = [
                Line(label=other.label, slot=other.slot, points=curves[other.label], ghost=True)
                for other in groups
                if other.label in curves and other.label != group.label
            ]
            own = Line(label=group.label, slot=group.slot, points=curves[group.label])
            chart = line_chart([*ghosts, own], title=group.label, x_label="", y_text=plain, small=True, y_top=top)
            charts += [chart] if chart else []
        rows += [(name, charts)] if charts else []
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One label's bar; `low` and `high` bound the interval, all as shares of the longest."""

    label: str
    slot: int
    score: Estimate
    width: float
    low: float | None
    high: float | None


def domain_bars(groups: Sequence[Group], table: Table) -> list[tuple[str, bool, list[Bar]]]:
    """(domain, whether it is held out, bars) for every domain that was scored, held-out ones last.

    Empty for data without domains; `table` is `training_table(groups)`.
    """
    scores = aggregate(table.where(measure="map"), "domain", "label")
    names = {name for name, _ in scores}
    if names <= {""}:
        return []
    held = {name for group in groups for name in group.config.hold_out}
    by_domain: dict[str, list[tuple[Group, Estimate]]] = {
        name: [(group, scores[name, group.label]) for group in groups if (name, group.label) in scores]
        for name in names
    }
    longest = max((s.high or s.mean for pairs in by_domain.values() for _, s in pairs), default=0.0) or 1.0
    longest = min(longest, 1.0)

    def share(value: float | None) -> float | None:
        return None if value is None else round(100 * min(max(value / longest, 0.0), 1.0), 2)

    return [
        (
            name or "no domain",
            name in held,
            [
                Bar(
                    label=group.label,
                    slot=group.slot,
                    score=score,
                    width=share(score.mean) or 0.0,
                    low=share(score.low),
                    high=share(score.high),
                )
                for group, score in by_domain[name]
            ],
        )
        for name in sorted(names, key=lambda n: (n in held, n))
    ]


def map_charts(groups: Sequence[Group], table: Table) -> list[Chart]:
    """Pointing game and mass in mask over the depth of the taps, against the teacher and the chance level.

    `table` is `training_table(groups)`.
    """
    scores = [run.scores for group in groups for run in group.counted if run.scores and run.scores.taps]
    areas = [each.area for each in scores if each.area is not None]
    charts = []
    for title, measure, teachers in (
        ("Peak in the object's mask, % of words", "tap_pointing", [each.teacher_pointing for each in scores]),
        ("Mass in the object's mask, %", "tap_mass_in_mask", [each.teacher_mass for each in scores]),
    ):
        levels = [
            (name, sum(known) / len(known), name)
            for name, values in (("teacher", teachers), ("chance", areas))
            if (known := [value for value in values if value is not None])
        ]
        lines = []
        for group in groups:
            of_runs = table.where(measure=measure, label=group.label).split("run").values()
            curves = [[(row.depth or 0.0, row.value) for row in part.rows if row.value is not None] for part in of_runs]
            rows = mean_curve(curves)
            lines.append(
                Line(
                    label=group.label,
                    slot=group.slot,
                    points=[(depth, mean) for depth, mean, _, _ in rows],
                    band=[(depth, low, high) for depth, _, low, high in rows] if len(curves) > 1 else (),
                )
            )
        chart = line_chart(
            lines,
            title=title,
            x_label="depth of the tap in the student",
            x_text=lambda x: f"{x * 100:.0f} %",
            x_values=sorted({depth for line in lines for depth, _ in line.points}),
            levels=levels,
            dots=True,
            y_top=1.0,
        )
        charts += [chart] if chart else []
    return charts


_MOST_SERIES = 5  # as many marks as there are


def score_charts(comparison: Comparison) -> list[DotChart]:
    """Return a chart of each block of a comparison: its groups, the best above, with what is measured in per cent.

    Measures that are tested come first, then parts of them; of more than five the last are left out.
    """
    charts = []
    for block in comparison.blocks:
        shares = [
            place for place, column in enumerate(block.columns) if column.unit == "share" and column.higher_is_better
        ]
        first = [place for place in shares if block.tested[place]]
        series = [*first, *(place for place in shares if place not in first)][:_MOST_SERIES]
        rows: dict[str, dict[str, tuple[float, float]]] = {}
        for row in block.rows:
            cells = {block.columns[place].heading: row.cells[place].value for place in series}
            rows[row.label] = {name: (each.mean, each.half or 0.0) for name, each in cells.items() if each is not None}
        rows = dict(sorted(rows.items(), key=lambda item: -next(iter(item[1].values()), (0.0, 0.0))[0]))
        teacher = {
            block.columns[place].heading: value for place in series if (value := block.teacher[place]) is not None
        }
        if teacher:
            rows["(teacher)"] = {name: (value, 0.0) for name, value in teacher.items()}
        if rows := {name: row for name, row in rows.items() if row}:
            settings = {name: value for name, value in block.settings.items() if name != "targets"}  # a fingerprint
            source = f"in %, mean and 95 % interval over seeds; {settings_text(replace(block, settings=settings))}"
            charts.append(interval_chart(rows, title=block.title, source=source))
    return charts


def scores_svg(comparison: Comparison) -> str:
    """Return the charts of a comparison as one SVG.

    Raises:
        RunError: no run has a score in per cent to draw.
    """
    charts = score_charts(comparison)
    if not charts:
        raise RunError("A plot needs runs with a score, found none. Score them with lfi evaluate.")
    return draw_charts(charts)

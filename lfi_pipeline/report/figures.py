"""Which charts the page has, and which numbers go into each; their geometry is `charts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lfi_pipeline.report.charts import Chart, Line, line_chart, plain
from lfi_pipeline.report.groups import Group
from lfi_pipeline.report.runs import Run, Tap, TrainPoint
from lfi_pipeline.report.statistics import Estimate, mean_curve, thin
from lfi_pipeline.report.verdict import Crossing


def learning_curves(groups: Sequence[Group], crossing: Crossing | None) -> list[Chart]:
    """Validation mAP over steps, seen and held-out domains on one scale; the band is lowest to highest."""
    charts = []
    curves = {heldout: [group.curve(heldout) for group in groups] for heldout in (False, True)}
    top = max((row[3] for both in curves.values() for curve in both for row in curve), default=0.0)
    for heldout, title in ((False, "Seen domains"), (True, "Held-out domains")):
        lines = [
            Line(
                label=group.label,
                slot=group.slot,
                points=[(step, mean) for step, mean, _, _ in curve],
                band=[(step, low, high) for step, _, low, high in curve] if len(group.runs) > 1 else (),
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
                [(float(p.step), value) for p in run.train if (value := pick(p)) is not None] for run in group.runs
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


def domain_bars(groups: Sequence[Group]) -> list[tuple[str, bool, list[Bar]]]:
    """(domain, whether it is held out, bars) for every domain that was scored, held-out ones last."""
    scored = [run for group in groups for run in group.runs if run.scores is not None]
    names = sorted({name for run in scored if run.scores for name in run.scores.map_per_domain})
    held = {name for group in groups for name in group.config.hold_out}
    found: dict[str, list[tuple[Group, Estimate]]] = {}
    for name in names:

        def pick(run: Run, name: str = name) -> float | None:
            return run.scores.map_per_domain.get(name) if run.scores else None

        found[name] = [(group, score) for group in groups if (score := group.estimate(pick))]
    longest = max((s.high or s.mean for pairs in found.values() for _, s in pairs), default=0.0) or 1.0
    longest = min(longest, 1.0)

    def share(value: float | None) -> float | None:
        return None if value is None else round(100 * min(max(value / longest, 0.0), 1.0), 2)

    return [
        (
            name,
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
                for group, score in found[name]
            ],
        )
        for name in sorted(names, key=lambda n: (n in held, n))
    ]


def map_charts(groups: Sequence[Group]) -> list[Chart]:
    """Pointing game and mass in mask over the depth of the taps, against the teacher and the chance level."""
    picks: list[tuple[str, Callable[[Tap], float]]] = [
        ("Peak in the object's mask, % of words", lambda tap: tap.pointing),
        ("Mass in the object's mask, %", lambda tap: tap.mass_in_mask),
    ]
    scores = [run.scores for group in groups for run in group.runs if run.scores and run.scores.taps]
    charts = []
    for i, (title, pick) in enumerate(picks):
        teachers = [t for s in scores if (t := (s.teacher_pointing, s.teacher_mass)[i]) is not None]
        areas = [s.area for s in scores if s.area is not None]
        levels = [("teacher", sum(teachers) / len(teachers), "teacher")] if teachers else []
        levels += [("chance", sum(areas) / len(areas), "chance")] if areas else []
        lines = []
        for group in groups:
            per_seed = [
                [(tap.depth, pick(tap)) for tap in run.scores.taps]
                for run in group.runs
                if run.scores and run.scores.taps
            ]
            rows = mean_curve(per_seed)
            lines.append(
                Line(
                    label=group.label,
                    slot=group.slot,
                    points=[(depth, mean) for depth, mean, _, _ in rows],
                    band=[(depth, low, high) for depth, _, low, high in rows] if len(per_seed) > 1 else (),
                )
            )
        depths = sorted({depth for line in lines for depth, _ in line.points})
        chart = line_chart(
            lines,
            title=title,
            x_label="depth of the tap in the student",
            x_text=lambda x: f"{x * 100:.0f} %",
            x_values=depths,
            levels=levels,
            dots=True,
            y_top=1.0,
        )
        charts += [chart] if chart else []
    return charts

"""The leaderboard: one row a label, mean and interval over seeds, the best of each column marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lfi_pipeline.report.groups import Group
from lfi_pipeline.report.runs import Run
from lfi_pipeline.report.statistics import Estimate
from lfi_pipeline.report.verdict import points

MISSING = "–"


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


def leaderboard(groups: Sequence[Group]) -> list[Column]:
    """The columns that at least one label has a value in."""
    estimates = [
        _score_column(groups, "mAP seen", "mean average precision, domains seen in training", lambda r: r.map_seen),
        _score_column(
            groups,
            "mAP held-out",
            "mean average precision, domains held out of training",
            lambda r: r.map_heldout,
        ),
        _score_column(
            groups,
            "pointing",
            "words whose peak in the last tap's map lies in the object's mask, %",
            lambda r: r.pointing,
        ),
    ]
    return [c for c in [*estimates, _parameters(groups), *_time(groups)] if c is not None]


def _score_column(groups: Sequence[Group], name: str, hint: str, pick: Callable[[Run], float | None]) -> Column | None:
    scores = [group.estimate(pick) for group in groups]
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
                interval=_interval(score),
                best=len(known) > 1 and score.mean == best,
                dot=(round(low, 1), round(mean, 1), round(high, 1)) if len(known) > 1 else None,
            )
        )
    return Column(name=name, hint=hint, cells=tuple(cells))


def _interval(score: Estimate) -> str:
    return f"± {points(score.half)}" if score.half is not None else "one seed"


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


def millions(count: int) -> str:
    """A parameter count: "5.7 M", "12.3 k"."""
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.1f} k" if count >= 1000 else str(count)


def _time(groups: Sequence[Group]) -> list[Column]:
    times = [group.estimate(lambda run: run.step_ms) for group in groups]
    known = [time.mean for time in times if time is not None]
    if not known:
        return []
    base = next((t.mean for g, t in zip(groups, times, strict=True) if t and g.config.objective == "none"), None)
    cells = []
    for time in times:
        if time is None:
            cells.append(Cell(text=MISSING))
            continue
        ratio = f"{time.mean / base:.2f}× none" if base else ""
        cells.append(Cell(text=f"{time.mean:.1f} ms", interval=ratio, best=len(known) > 1 and time.mean == min(known)))
    return [
        Column(
            name="step time",
            hint="median milliseconds of a training step, and its ratio to none",
            cells=tuple(cells),
        )
    ]

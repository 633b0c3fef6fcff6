"""Geometry of the charts: numbers in, SVG coordinates out. The looks are the template's and the stylesheet's.

Colours are CSS classes (`slot-3`), so that a chart follows the page into dark mode. The right fifth of a line
chart holds the direct labels; narrow screens crop it and rely on the legend.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

from lfi_pipeline.report.text import points

LABEL_GAP = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """Where `label` first reaches the final score of `control`, mean over seeds: a point to mark."""

    score: float
    step: float
    label: str
    control: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One series in data units; `band` holds (x, low, high), `ghost` draws it as quiet context."""

    label: str
    slot: int
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    ghost: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """One series in SVG units."""

    label: str
    slot: int
    path: str
    band: str
    dots: tuple[tuple[float, float], ...]
    end: tuple[float, float]
    label_y: float
    ghost: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """A horizontal reference line in SVG units."""

    name: str
    y: float
    kind: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A line chart, ready for the template.

    Attributes:
        box: left, top, right, bottom of the plotting area.
        x_ticks, y_ticks: (position, text).
        mark: x, y and text of the crossing, if one is marked.
        readout: JSON for the hover readout: positions and texts along x, values for each series.
    """

    title: str
    description: str
    x_label: str
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Drawn, ...]
    levels: tuple[Level, ...]
    mark: tuple[float, float, str] | None
    readout: str
    small: bool


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover [low, high]; steps are 1, 2 or 5 times a power of ten."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        span = abs(low) or 1.0
    raw = span / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def spread_labels(wanted: Sequence[float], low: float, high: float, gap: float = LABEL_GAP) -> list[float]:
    """Move label positions apart by `gap`, keeping their order, inside [low, high] as far as they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    previous = low - gap
    for i in order:
        placed[i] = previous = max(wanted[i], previous + gap)
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def plain(value: float) -> str:
    """A number with as many digits as a small axis can take."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    x_text: Callable[[float], str] = lambda x: f"step {x:,.0f}",
    x_values: Sequence[float] | None = None,
    y_text: Callable[[float], str] = points,
    levels: Sequence[tuple[str, float, str]] = (),
    crossing: Crossing | None = None,
    dots: bool = False,
    small: bool = False,
    y_top: float | None = None,
) -> Chart | None:
    """Lay out one chart; None where no line has a point.

    Args:
        lines: the series, in data units.
        x_values: ticks of the x axis; round numbers where None.
        levels: (name, y, kind) of horizontal references; the kind is a CSS class.
        crossing: the point to mark.
        dots: whether to mark every point.
        small: a small multiple: fewer ticks, no direct labels.
        y_top: a common upper end for charts that are compared.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    size, box = ((240, 132), (34, 8, 234, 110)) if small else ((560, 304), (40, 14, 412, 264))
    left, top, right, bottom = box
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for _, _, y in line.band]
    x_low, x_high = min(xs), max(xs)
    if x_values is None:
        x_low = 0.0
    elif len(x_values) > 0:
        pad = 0.06 * ((x_high - x_low) or 1.0)
        x_low, x_high = x_low - pad, x_high + pad
    x_high = x_high if x_high > x_low else x_low + 1
    y_ticks = nice_ticks(0.0, max([y_top or 0.0, *ys, *(y for _, y, _ in levels)]), 4 if small else 6)
    y_high = y_ticks[-1]

    def px(x: float) -> float:
        return round(left + (x - x_low) / (x_high - x_low) * (right - left), 1)

    def py(y: float) -> float:
        return round(bottom - y / y_high * (bottom - top), 1)

    x_ticks = nice_ticks(x_low, x_high, 3 if small else 6) if x_values is None else list(x_values)
    ends = [py(line.points[-1][1]) for line in lines]
    label_ys = spread_labels(ends, top + 4, bottom - 2)
    drawn = []
    for line, end, label_y in zip(lines, ends, label_ys, strict=True):
        upper = [f"{px(x)},{py(high)}" for x, _, high in line.band]
        lower = [f"{px(x)},{py(low)}" for x, low, _ in reversed(line.band)]
        drawn.append(
            Drawn(
                label=line.label,
                slot=line.slot,
                path="M" + "L".join(f"{px(x)},{py(y)}" for x, y in line.points),
                band=f"M{'L'.join(upper + lower)}Z" if len(line.band) > 1 else "",
                dots=tuple((px(x), py(y)) for x, y in line.points) if dots or len(line.points) == 1 else (),
                end=(px(line.points[-1][0]), end),
                label_y=round(label_y, 1),
                ghost=line.ghost,
            )
        )
    named = [line for line in lines if not line.ghost]
    return Chart(
        title=title,
        description=f"{title}. Last values: "
        + ", ".join(f"{line.label} {y_text(line.points[-1][1])}" for line in named),
        x_label=x_label,
        size=size,
        box=box,
        x_ticks=tuple((px(x), x_text(x).removeprefix("step ")) for x in x_ticks if x_low <= x <= x_high),
        y_ticks=tuple((py(y), y_text(y).removesuffix(".0")) for y in y_ticks),
        lines=tuple(drawn),
        levels=tuple(Level(name=name, y=py(y), kind=kind) for name, y, kind in levels),
        mark=(px(crossing.step), py(crossing.score), f"step {crossing.step:,.0f}") if crossing else None,
        readout=_readout(named, px, x_text, y_text, levels),
        small=small,
    )


def _readout(
    lines: Sequence[Line],
    px: Callable[[float], float],
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    levels: Sequence[tuple[str, float, str]],
) -> str:
    shared = sorted({x for line in lines for x, _ in line.points})
    tables = [dict(line.points) for line in lines]
    series = [
        {"label": line.label, "slot": line.slot, "y": [y_text(t[x]) if x in t else None for x in shared]}
        for line, t in zip(lines, tables, strict=True)
    ]
    series += [{"label": name, "slot": None, "y": [y_text(y)] * len(shared)} for name, y, _ in levels]
    return json.dumps({"at": [[px(x), x_text(x)] for x in shared], "series": series}, allow_nan=False)


LEFT, WIDTH, TOP, ROW, BELOW = 250.0, 560.0, 86.0, 19.0, 30.0
_ROUND = (1, 1.5, 2, 3, 5, 7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """One number: its place, the slot of its colour and mark, what hovering shows, and (from, to) of its interval."""

    x: float
    y: float
    slot: int
    text: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DotChart:
    """A chart, ready for the template.

    Attributes:
        source: where the numbers are from.
        about: how to read them.
        names: (position, text) of the rows; rules: positions of the lines that lead to them, or part them.
        ticks: (position, text) of the axis.
        levels: (position, text) of vertical references.
        legend: (x, y, slot, text).
        height: of the whole chart.
    """

    title: str
    source: str
    about: str
    names: tuple[tuple[float, str], ...]
    rules: tuple[float, ...]
    ticks: tuple[tuple[float, str], ...]
    levels: tuple[tuple[float, str], ...]
    legend: tuple[tuple[float, float, int, str], ...]
    dots: tuple[Dot, ...]
    height: float


def dot_chart(
    rows: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    source: str,
    about: str,
    slots: Mapping[str, int],
    levels: Sequence[float],
) -> DotChart:
    """Lay out one chart of ratios, on a logarithmic axis.

    Args:
        rows: a row's numbers by series, all above 0; at least one.
        slots: colour and mark of each series, in the legend's order; series that no row has are left out.
        levels: vertical references.
    """
    values = [value for row in rows.values() for value in row.values()]
    ticks = _log_ticks(min(*levels, *values), max(*levels, *values))
    low, high = math.log(ticks[0]), math.log(ticks[-1])

    def px(value: float) -> float:
        return round(LEFT + (math.log(value) - low) / (high - low) * WIDTH, 1)

    places = _places(rows)
    present = [name for name in slots if any(name in row for row in rows.values())]
    return DotChart(
        title=title,
        source=source,
        about=about,
        names=tuple((y, name) for name, y in places.items()),
        rules=tuple(places.values()),
        ticks=tuple((px(value), f"{value:g}x") for value in ticks),
        levels=tuple((px(value), f"{value:g}") for value in levels),
        legend=_legend(present, slots, LEFT),
        dots=tuple(
            Dot(x=px(row[series]), y=places[name], slot=slots[series], text=f"{name}, {series}: {row[series]:.3g}x")
            for name, row in rows.items()
            for series in present
            if series in row
        ),
        height=TOP + ROW * len(rows) + BELOW,
    )


def interval_chart(rows: Mapping[str, Mapping[str, tuple[float, float]]], *, title: str, source: str) -> DotChart:
    """Lay out one chart of scores with their intervals, on an axis of per cent.

    Args:
        rows: a row's (mean, half of its interval) by series, shares of 1; at least one. Series take colours in turn.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    slots = {name: place for place, name in enumerate(series)}
    every = [(mean, half) for row in rows.values() for mean, half in row.values()]
    ticks = nice_ticks(0.0, min(1.0, max(m + h for m, h in every)), count=9)

    def px(value: float) -> float:  # where an interval leaves what a share can be, it ends
        value = min(max(value, ticks[0]), ticks[-1])
        return round(LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * WIDTH, 1)

    apart = 9.0  # of marks of one row
    height = apart * len(series) + 7
    places = _places(rows, height)
    return DotChart(
        title=title,
        source=source,
        about="",
        names=tuple((y, name) for name, y in places.items()),
        rules=tuple(y - height / 2 for y in places.values()),
        ticks=tuple((px(value), f"{100 * value:g}") for value in ticks),
        levels=(),
        legend=_legend(series, slots, 16.0),
        dots=tuple(
            Dot(
                x=px(mean),
                y=round(places[name] + (slots[each] - (len(series) - 1) / 2) * apart, 1),
                slot=slots[each],
                text=f"{name}, {each}: {points(mean)}" + (f" ± {points(half)}" if half else ""),
                interval=(px(mean - half), px(mean + half)) if half else None,
            )
            for name, row in rows.items()
            for each, (mean, half) in row.items()
        ),
        height=TOP + height * len(rows) + BELOW,
    )


def _places(rows: Iterable[str], height: float = ROW) -> dict[str, float]:
    return {name: TOP + height * (i + 0.5) for i, name in enumerate(rows)}


def _legend(series: Sequence[str], slots: Mapping[str, int], left: float) -> tuple[tuple[float, float, int, str], ...]:
    """From `left` on, in a second line what a first cannot hold."""
    legend, x, y = [], left, 66.0
    for name in series:
        wide = 30 + 6.8 * len(name)
        if x > left and x + wide > LEFT + WIDTH + 40:
            x, y = left, y + 15
        legend.append((round(x, 1), y, slots[name], name))
        x += wide
    return tuple((x, at - (y - 66.0) / 3, slot, name) for x, at, slot, name in legend)


def draw_charts(charts: Sequence[DotChart]) -> str:
    """One SVG of all charts, one below the other, in the report's colours: dark where the reader's system is."""
    templates = resources.files("lfi_pipeline.report") / "templates"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((templates / "dots.svg.jinja").read_text(encoding="utf-8"))
    tops, at = [], 0.0
    for chart in charts:
        tops.append(at)
        at += chart.height + 26
    light, dark = _colours((templates / "style.css").read_text(encoding="utf-8"))
    return template.render(
        charts=list(zip(tops, charts, strict=True)), height=at, left=LEFT, width=WIDTH, top=TOP, light=light, dark=dark
    )


def _colours(style: str) -> tuple[str, str]:
    """The variables of the report's stylesheet, light and dark."""
    light, dark = (style[style.index(head) + len(head) :] for head in (":root {", ':root[data-theme="dark"] {'))
    return light[: light.index("}")], dark[: dark.index("}")]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from the last that is not above `low` to the first that is not below `high`, two or more."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
    every = [round(m * 10.0**power, 9) for power in range(first, last + 1) for m in _ROUND]
    begin = max(i for i, value in enumerate(every) if value <= low)
    end = min(i for i, value in enumerate(every) if value >= high)
    return every[begin : max(end, begin + 1) + 1]

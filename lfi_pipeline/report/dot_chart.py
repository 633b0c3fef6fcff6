"""Rows of dots on a logarithmic axis: numbers in, SVG coordinates out. The looks are the template's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

LEFT, WIDTH, TOP, ROW, BELOW = 250.0, 560.0, 86.0, 19.0, 30.0
_ROUND = (1, 1.5, 2, 3, 5, 7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """One number: its place, the slot of its colour and mark, and what hovering shows."""

    x: float
    y: float
    slot: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DotChart:
    """A chart, ready for the template.

    Attributes:
        source: where the numbers are from.
        about: how to read them.
        names: (position, text) of the rows.
        ticks: (position, text) of the axis.
        levels: (position, text) of vertical references.
        legend: (position, slot, text).
        height: of the whole chart.
    """

    title: str
    source: str
    about: str
    names: tuple[tuple[float, str], ...]
    ticks: tuple[tuple[float, str], ...]
    levels: tuple[tuple[float, str], ...]
    legend: tuple[tuple[float, int, str], ...]
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
    """Lay out one chart.

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

    places = {name: TOP + ROW * (i + 0.5) for i, name in enumerate(rows)}
    present = [name for name in slots if any(name in row for row in rows.values())]
    legend, at = [], LEFT
    for name in present:
        legend.append((round(at, 1), slots[name], name))
        at += 30 + 6.8 * len(name)
    return DotChart(
        title=title,
        source=source,
        about=about,
        names=tuple((y, name) for name, y in places.items()),
        ticks=tuple((px(value), f"{value:g}") for value in ticks),
        levels=tuple((px(value), f"{value:g}") for value in levels),
        legend=tuple(legend),
        dots=tuple(
            Dot(x=px(row[series]), y=places[name], slot=slots[series], text=f"{name}, {series}: {row[series]:.3g}x")
            for name, row in rows.items()
            for series in present
            if series in row
        ),
        height=TOP + ROW * len(rows) + BELOW,
    )


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

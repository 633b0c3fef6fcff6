"""Chart geometry: round ticks, labels that do not collide, coordinates inside the box."""

from __future__ import annotations

import itertools
import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfi_pipeline.report.charts import (
    LABEL_GAP,
    Line,
    draw_charts,
    interval_chart,
    line_chart,
    nice_ticks,
    spread_labels,
)
from lfi_pipeline.report.verdict import Crossing


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_cover_the_range_and_are_few(low: float, span: float, count: int) -> None:
    ticks = nice_ticks(low, low + span, count)
    assert ticks[0] <= low + 1e-6 * span
    assert ticks[-1] >= low + span * (1 - 1e-6)
    assert 2 <= len(ticks) <= count + 2


def test_ticks_are_round() -> None:
    assert nice_ticks(0, 0.56, 6) == [0, 0.2, 0.4, 0.6]
    assert nice_ticks(0, 930, 6) == [0, 200, 400, 600, 800, 1000]
    assert nice_ticks(0, 0) == [0, 0.5, 1.0]


@given(st.lists(st.floats(0, 250), min_size=1, max_size=10))
def test_labels_keep_their_order_and_distance(wanted: list[float]) -> None:
    placed = spread_labels(wanted, 0, 250)
    rows = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for above, below in itertools.pairwise(rows):
        assert placed[below] - placed[above] >= LABEL_GAP - 1e-9
    assert all(-1e-9 <= y <= 250 + 1e-9 for y in placed)


def test_a_chart_stays_in_its_box() -> None:
    lines = [
        Line(label="a", slot=0, points=[(10, 0.1), (20, 0.5)], band=[(10, 0.0, 0.2), (20, 0.4, 0.6)]),
        Line(label="b", slot=1, points=[(15, 0.3)]),
    ]
    mark = Crossing(score=0.3, step=15, label="a", control="b")
    chart = line_chart(lines, title="t", x_label="x", crossing=mark)
    assert chart is not None
    left, top, right, bottom = chart.box
    for line in chart.lines:
        assert left <= line.end[0] <= right
        assert top <= line.end[1] <= bottom
    assert chart.lines[1].dots == ((chart.lines[1].end),)
    assert chart.mark == (chart.lines[1].end[0], chart.lines[1].end[1], "step 15")
    readout = json.loads(chart.readout)
    assert [text for _, text in readout["at"]] == ["step 10", "step 15", "step 20"]
    assert readout["series"][1]["y"] == [None, "30.0", None]


def test_no_points_no_chart() -> None:
    assert line_chart([Line(label="a", slot=0, points=[])], title="t", x_label="x") is None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_curves_have_a_scale(value: float) -> None:
    chart = line_chart([Line(label="a", slot=0, points=[(1, value), (2, value)])], title="t", x_label="x")
    assert chart is not None
    assert len(chart.y_ticks) >= 2


def test_scores_and_their_intervals_lie_on_an_axis_of_per_cent() -> None:
    wide = "mAP of a domain with a long name"
    rows = {"lfi": {"mAP": (0.6, 0.1), wide: (0.5, 0.0)}, "none": {"mAP": (0.05, 0.2), wide: (0.31, 0.01)}}
    chart = interval_chart(rows, title="t", source="s")
    assert [text for _, text in chart.ticks] == ["0", "10", "20", "30", "40", "50", "60", "70"]
    place = {text: x for x, text in chart.ticks}
    lfi, single, none, _ = chart.dots
    assert (lfi.x, lfi.interval) == (place["60"], (place["50"], place["70"]))
    assert (single.x, single.interval) == (place["50"], None)  # of one seed
    assert none.interval is not None
    assert none.interval[0] == place["0"]  # no share is below
    assert (lfi.text, single.text) == ("lfi, mAP: 60.0 ± 10.0", f"lfi, {wide}: 50.0")
    heights = [dot.y for dot in chart.dots]
    assert heights == sorted(set(heights))
    assert chart.rules[1] > single.y  # rows are parted
    assert chart.rules[1] < none.y
    many = interval_chart({"lfi": {f"{wide} {i}": (0.5, 0.1) for i in range(5)}}, title="t", source="s")
    assert len({y for _, y, _, _ in many.legend}) == 2
    root = ElementTree.fromstring(draw_charts([chart, many]))
    assert len([each for each in root.iter() if each.get("class", "").startswith("interval")]) == 3 + 5

"""The tidy table: what becomes a row, and the one aggregation over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.evaluation.protocols import ProtocolResult
from lfi_pipeline.report.groups import gather
from lfi_pipeline.report.runs import load_run
from lfi_pipeline.report.statistics import estimate
from lfi_pipeline.report.table import (
    TRAINING,
    Row,
    Table,
    aggregate,
    over_domains,
    panels,
    result_table,
    training_table,
)


def row(label: str, seed: int, value: float | None, measure: str = "map", **columns: Any) -> Row:
    place = {"run": Path(f"{label}-{seed}"), "protocol": "classification"} | columns
    return Row(label=label, seed=seed, measure=measure, value=value, **place)


def test_a_mean_is_over_seeds_and_a_seed_counts_once() -> None:
    table = Table((row("a", 0, 0.1), row("a", 0, 0.3), row("a", 1, 0.6), row("a", 2, None), row("b", 0, None)))
    assert table.where(label="a").by_seed() == {0: pytest.approx(0.2), 1: 0.6}
    assert aggregate(table, "label") == {("a",): estimate([0.2, 0.6])}  # b has no value, so it has no mean
    assert table.where(label="a").mean() == pytest.approx(1 / 3)
    assert table.where(label="b").mean() is None


def test_parts_keep_the_order_of_their_first_row() -> None:
    table = Table((row("b", 1, 0.1), row("a", 0, 0.2, "top1"), row("b", 0, 0.3)))
    assert table.distinct("label") == ["b", "a"]
    assert list(table.split("label", "measure")) == [("b", "map"), ("a", "top1")]
    assert [each.seed for each in table.split("label")["b",].rows] == [1, 0]


def test_a_mean_over_domains_is_of_seeds_that_have_them_all() -> None:
    assert over_domains([{0: 0.2, 1: 0.4}, {1: 0.6, 2: 0.9}]) == {1: pytest.approx(0.5)}
    assert over_domains([]) == over_domains([{0: 0.1}, {1: 0.1}]) == {}


def test_what_runs_say_of_themselves(make_run: Any) -> None:
    runs = [load_run(make_run(f"a{seed}", seed=seed)) for seed in range(2)]
    table = training_table(gather(runs)[0])
    assert table.distinct("protocol") == [TRAINING]
    assert table.where(measure="map_seen").by_seed() == {run.config.seed: run.map_seen for run in runs}
    assert set(table.where(measure="map").distinct("domain")) == {"flat", "line", "painted"}
    taps = table.where(measure="tap_pointing", run=runs[0].path)
    assert [each.depth for each in taps.rows] == [0.33, 0.67, 1.0]
    assert taps.rows[-1].value == runs[0].pointing


def test_a_stopped_run_has_undefined_values_and_no_zeros(make_run: Any) -> None:
    (group,), _ = gather([load_run(make_run("a", "none", scores=False, summary=False, held_out=False))])
    values = {each.measure: each.value for each in training_table([group]).rows}
    assert [values[name] for name in ("map_heldout", "pointing", "seconds")] == [None, None, None]


def test_scores_of_results_are_rows_and_settings_make_panels(make_run: Any) -> None:
    def result(iterations: int, seed: int, value: float | None) -> ProtocolResult:
        settings = {"dataset": "scenes", "iterations": iterations, "seed": seed}
        return ProtocolResult(
            protocol="detection", settings=settings, scores={"box_ap": value}, details={}, seconds=1.0
        )

    groups, _ = gather([load_run(make_run(f"a{seed}", seed=seed)) for seed in range(2)])
    first, second = (run.path for run in groups[0].runs)
    results = {first: [result(90, 0, 0.1), result(90, 1, 0.3)], second: [result(90, 0, None), result(10, 0, 0.5)]}
    table = result_table(groups, results)
    assert [len(part.rows) for part in table.where(measure="box_ap").split("settings").values()] == [1, 3]
    few, many = panels(groups, results)  # by size of the number, not in the order of its digits
    assert (few.settings["iterations"], many.settings["iterations"]) == (10, 90)
    assert few.differing == many.differing == ("iterations",)
    (only,) = many.rows
    assert (only.seeds, only.cells) == ((0, 1), ({0: pytest.approx(0.2)},))  # seed 1 was scored, and has no value
    assert panels(groups, results, only=["grounding"]) == []

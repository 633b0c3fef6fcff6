"""The leaderboard: the best of each column, ratios to none, and gaps where a value is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.report.compare import compare
from lfi_pipeline.report.figures import Column, domain_bars, leaderboard, score_charts, scores_svg
from lfi_pipeline.report.groups import Group, gather
from lfi_pipeline.report.runs import load_run
from lfi_pipeline.report.table import training_table
from lfi_pipeline.report.text import MISSING, millions


def groups_of(*paths: Any) -> list[Group]:
    return gather([load_run(path) for path in paths])[0]


def board_of(*paths: Any) -> dict[str, Column]:
    groups = groups_of(*paths)
    return by_name(leaderboard(groups, training_table(groups)))


def by_name(columns: list[Column]) -> dict[str, Column]:
    return {column.name: column for column in columns}


def test_the_best_is_marked_and_time_is_a_ratio_to_none(make_run: Any) -> None:
    runs = [make_run(f"n{s}", "none", seed=s, seen=0.3 + s / 100) for s in range(2)]
    runs += [make_run(f"l{s}", seed=s, seen=0.5 + s / 100) for s in range(2)]
    columns = board_of(*runs)
    none, lfi = columns["mAP seen"].cells
    assert (none.text, none.best, lfi.text, lfi.best) == ("30.5", False, "50.5", True)
    assert lfi.interval == "± 6.4"
    assert [cell.best for cell in columns["step time"].cells] == [True, False]
    assert columns["step time"].cells[1].interval == "1.16× none"
    assert columns["pointing"].cells[0].text == MISSING
    assert columns["parameters"].cells[1].interval == "+ 412.2 k in training"


def test_columns_without_a_value_are_left_out(make_run: Any) -> None:
    names = board_of(make_run("a", "none", held_out=False, summary=False))
    assert set(names) == {"mAP", "step time"}  # nothing is held out, so nothing is "seen" either
    assert names["mAP"].cells[0].best is False
    assert names["mAP"].cells[0].dot is None


def test_a_step_time_within_noise_is_not_bold(make_run: Any) -> None:
    runs = [make_run("n", "none"), make_run("l")]  # one seed each: no interval
    assert [cell.best for cell in board_of(*runs)["step time"].cells] == [False, False]
    for seed, (fast, slow) in enumerate(((61.0, 64.0), (75.0, 70.0)), start=1):
        for name, objective, step_ms in ((f"n{seed}", "none", fast), (f"l{seed}", "lfi", slow)):
            run = make_run(name, objective, seed=seed)
            summary = json.loads((run / "summary.json").read_text())
            (run / "summary.json").write_text(json.dumps(summary | {"step_ms": step_ms}))
            runs.append(run)
    assert [cell.best for cell in board_of(*runs)["step time"].cells] == [False, False]


def test_data_without_domains_has_no_bars_and_an_undefined_score_has_none(make_run: Any) -> None:
    run = make_run("a")
    (place,) = run.glob("evaluation/classification-*.json")
    result = json.loads(place.read_text())
    for domains, bars in (({"": 0.4}, []), ({"": 0.4, "b": 0.3}, ["b", "no domain"]), ({"b": 0.3, "c": None}, ["b"])):
        place.write_text(json.dumps(result | {"details": {"map_per_domain": domains}}))
        groups = groups_of(run)
        assert sorted(name for name, _, _ in domain_bars(groups, training_table(groups))) == bars


def test_counts_are_short() -> None:
    assert [millions(n) for n in (5_524_416, 11_580, 12)] == ["5.5 M", "11.6 k", "12"]


def test_held_out_domains_come_last_and_bars_stay_in_their_track(make_run: Any) -> None:
    runs = [make_run(f"l{s}", seed=s, seen=0.2 + 0.7 * s) for s in range(2)]
    groups = groups_of(*runs)
    domains = domain_bars(groups, training_table(groups))
    assert [(name, held) for name, held, _ in domains] == [
        ("flat", False),
        ("line", False),
        ("painted", True),
    ]
    for _, _, bars in domains:
        for bar in bars:
            assert bar.low is not None
            assert bar.high is not None
            assert 0 <= bar.low <= bar.width <= bar.high <= 100


def test_a_plot_has_the_best_first_the_tested_measures_first_and_the_teacher_last(scored: Any) -> None:
    runs = [
        scored(objective, seed, {"grounding": {"iou": 0.2, "pointing": pointing + seed / 100, "teacher_pointing": 0.9}})
        for seed in range(2)
        for objective, pointing in (("lfi+presence", 0.4), ("lfi", 0.7))
    ]
    (chart,) = score_charts(compare(runs, primary=["grounding:pointing"]))
    assert [name for _, name in chart.names] == ["lfi", "lfi+presence", "(teacher)"]
    assert [text for _, _, _, text in chart.legend] == ["peak in mask", "IoU at the best threshold"]
    assert chart.dots[0].text == "lfi, peak in mask: 70.5 ± 6.4"
    assert chart.dots[-1].text == "(teacher), peak in mask: 90.0"


def test_without_a_score_there_is_no_plot(make_run: Any) -> None:
    with pytest.raises(RunError, match="needs runs with a score, found none"):
        scores_svg(compare([make_run("a")], protocols=["detection"]))

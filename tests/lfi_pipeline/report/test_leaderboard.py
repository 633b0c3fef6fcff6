"""The leaderboard: the best of each column, ratios to none, and gaps where a value is missing."""

from __future__ import annotations

from typing import Any

from lfi_pipeline.report.figures import domain_bars
from lfi_pipeline.report.groups import Group, gather
from lfi_pipeline.report.leaderboard import MISSING, Column, leaderboard, millions
from lfi_pipeline.report.runs import load_run


def groups_of(*paths: Any) -> list[Group]:
    return gather([load_run(path) for path in paths])[0]


def by_name(columns: list[Column]) -> dict[str, Column]:
    return {column.name: column for column in columns}


def test_the_best_is_marked_and_time_is_a_ratio_to_none(make_run: Any) -> None:
    runs = [make_run(f"n{s}", "none", seed=s, seen=0.3 + s / 100) for s in range(2)]
    runs += [make_run(f"l{s}", seed=s, seen=0.5 + s / 100) for s in range(2)]
    columns = by_name(leaderboard(groups_of(*runs)))
    none, lfi = columns["mAP seen"].cells
    assert (none.text, none.best, lfi.text, lfi.best) == ("30.5", False, "50.5", True)
    assert lfi.interval == "± 6.4"
    assert [cell.best for cell in columns["step time"].cells] == [True, False]
    assert columns["step time"].cells[1].interval == "1.16× none"
    assert columns["pointing"].cells[0].text == MISSING
    assert columns["parameters"].cells[1].interval == "+ 412.2 k in training"


def test_columns_without_a_value_are_left_out(make_run: Any) -> None:
    names = by_name(leaderboard(groups_of(make_run("a", "none", held_out=False, summary=False))))
    assert set(names) == {"mAP seen", "step time"}
    assert names["mAP seen"].cells[0].best is False
    assert names["mAP seen"].cells[0].dot is None


def test_counts_are_short() -> None:
    assert [millions(n) for n in (5_524_416, 11_580, 12)] == ["5.5 M", "11.6 k", "12"]


def test_held_out_domains_come_last_and_bars_stay_in_their_track(make_run: Any) -> None:
    runs = [make_run(f"l{s}", seed=s, seen=0.2 + 0.7 * s) for s in range(2)]
    domains = domain_bars(groups_of(*runs))
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

"""lfi compare"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lfi_pipeline.report.conftest import write_run

Fails = Callable[..., str]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        for objective in ("none", "embedding", "lfi"):
            write_run(tmp_path / "runs", f"{objective}-{seed}", objective, seed=seed)
    return tmp_path / "runs"


def test_a_directory_of_runs(lfi: Callable[..., Any], runs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = lfi(
        "compare",
        runs,
        "--markdown",
        tmp_path / "deep" / "c.md",
        "--csv",
        tmp_path / "c.csv",
        "--plot",
        tmp_path / "c.svg",
    )
    assert shown.code == 0
    assert (tmp_path / "c.svg").read_text(encoding="utf-8").count("<title>lfi, ") >= 2
    for word in ("classification", "grounding", "embedding", "− none", "− best", "(teacher)", "1.16×", "Holm"):
        assert word in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100 + len(str(tmp_path))  # only paths are longer
    assert "| lfi − none |" in (tmp_path / "deep" / "c.md").read_text()
    with (tmp_path / "c.csv").open() as stream:
        assert {row["objective"] for row in csv.DictReader(stream)} == {"none", "embedding", "lfi"}


def test_json_and_options(lfi: Callable[..., Any], runs: Path) -> None:
    (runs / "leaderboard.md").write_text("")
    told = lfi(
        "compare", *sorted(runs.iterdir()), "--control", "embedding", "--protocol", "classification", "--json"
    ).json
    assert len(told["runs"]) == 9
    assert {result["protocol"] for result in told["results"]} == {"classification"}
    assert {result["control"] for result in told["results"]} == {None, "embedding"}
    lfi_row = next(r for r in told["results"] if (r["objective"], r["measure"]) == ("lfi", "map_seen"))
    assert lfi_row["diff_low"] < lfi_row["diff"] < lfi_row["diff_high"]
    assert 0 < lfi_row["p"] <= lfi_row["p_holm"] <= 1
    assert {cost["label"] for cost in told["costs"]} == {"none", "embedding", "lfi"}


def test_primary_measures(lfi: Callable[..., Any], runs: Path, tmp_path: Path) -> None:
    words = ("compare", runs, "--primary", "map_seen,grounding:pointing")
    made = lfi(*words, "--json").json
    assert made["primary"] == ["map_seen", "grounding:pointing"]
    tested = {row["measure"] for row in made["results"] if row["p"] is not None}
    assert tested == {"map_seen"}  # the control has no maps, so it does not point
    assert "Primary, named beforehand: map_seen, grounding:pointing." in lfi(*words).out
    assert lfi("compare", runs, "--json").json["primary"] is None
    assert lfi("report", runs, "--primary", "map_seen", "--out", tmp_path / "page.html").code == 0
    assert "Primary, named beforehand: map_seen." in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_cannot_be_compared(fails: Fails, runs: Path, tmp_path: Path) -> None:
    assert "Choices: embedding, lfi, none" in fails("UnknownNameError", "compare", runs, "--control", "nothing")
    assert "Unknown protocol" in fails("UnknownNameError", "compare", runs, "--protocol", "detections")
    assert "Did you mean 'map_seen'" in fails("UnknownNameError", "compare", runs, "--primary", "map_seem")
    assert "Did you mean 'map_seen'" in fails("UnknownNameError", "report", runs, "--primary", "map_seem")
    assert "is not there" in fails("RunError", "compare", tmp_path / "nowhere")
    unscored = ("compare", runs, "--protocol", "detection", "--csv", tmp_path / "c.csv", "--plot", tmp_path / "c.svg")
    assert "needs runs with a score" in fails("RunError", *unscored)
    assert not (tmp_path / "c.csv").exists()
    (tmp_path / "empty").mkdir()
    assert "lfi train" in fails("RunError", "compare", tmp_path / "empty")

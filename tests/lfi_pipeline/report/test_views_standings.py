"""Runs become rows: seeds together, everything else apart, the numbers right."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.core.options import build, flatten
from lfi_pipeline.report.text import standings_csv, standings_markdown, standings_table
from lfi_pipeline.report.views import standings
from lfi_pipeline.training.config import TrainConfig


def run(folder: Path, scores: dict[str, Any] | None, *, fingerprint: str = "f00", **settings: Any) -> Path:
    folder.mkdir()
    flat = flatten(build(TrainConfig, {"targets": "shards"} | settings))
    (folder / "config.json").write_text(json.dumps({"settings": flat, "targets_fingerprint": fingerprint}))
    if scores is not None:
        (folder / "summary.json").write_text(json.dumps({"steps": 3} | scores))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    made = []
    for objective, scores in (("none", (0.20, 0.30, 0.40)), ("lfi", (0.50, 0.50, 0.56))):
        for seed, score in enumerate(scores):
            found = {"map_seen": score, "map_heldout": None if seed == 2 else 0.1}
            made.append(run(tmp_path / f"{objective}-{seed}", found, objective=objective, seed=seed))
    return made


def test_a_scale_that_is_written_out_is_that_of_auto(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / f"{objective}-{scale[-2]}", {"map_seen": 0.1}, objective=objective, query_scale=scale, seed=seed)
        for objective in ("lfi", "none")
        for seed, scale in enumerate(("auto", "1/sqrt(d)"))
    ]
    found = [(row.settings["objective"], row.settings["query_scale"], row.seeds) for row in standings(runs)]
    assert sorted(found) == [("lfi", "auto", (0, 1)), ("none", "1/sqrt(d)", (1,)), ("none", "auto", (0,))]


def test_seeds_are_gathered_and_the_best_is_first(runs: list[Path]) -> None:
    first, second = standings(runs)
    assert (first.settings, second.settings) == ({"objective": "lfi"}, {"objective": "none"})
    assert first.seeds == second.seeds == (0, 1, 2)
    assert first.runs == ("lfi-0", "lfi-1", "lfi-2")
    score = second.scores["map_seen"]
    assert score.mean == pytest.approx(0.3)
    assert score.half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)  # t of 2 degrees at 97.5 %
    assert second.scores["map_heldout"].count == 2  # a score that is not there does not count as zero


def test_any_setting_that_differs_splits(tmp_path: Path) -> None:
    made = [
        run(tmp_path / "a", {"map_seen": 0.1}, query_heads=2),
        run(tmp_path / "b", {"map_seen": 0.2}, query_heads=4),
        run(tmp_path / "c", {"map_seen": 0.3}, query_heads=4, weight={"lfi": "0.3:cosine"}),
    ]
    rows = standings(made)
    assert [row.runs for row in rows] == [("c",), ("b",), ("a",)]
    assert [row.settings for row in rows] == [
        {"query_heads": 4, "weight": {"lfi": "0.3:cosine"}},
        {"query_heads": 4, "weight": {}},
        {"query_heads": 2, "weight": {}},
    ]
    headings, cells = standings_table(rows)
    assert headings == ["query_heads", "weight", "seeds", "mAP"]  # no run held a domain out
    assert cells == [["4", "lfi=0.3:cosine", "1", "30.0"], ["4", "none", "1", "20.0"], ["2", "none", "1", "10.0"]]


def test_a_cache_is_known_by_its_content_not_its_place(tmp_path: Path) -> None:
    made = [
        run(tmp_path / "a", {"map_seen": 0.3}, targets="/before/shards", data_root="/before/images", fingerprint="aaa"),
        run(tmp_path / "b", {"map_seen": 0.5}, targets="/after/shards", fingerprint="aaa", seed=1),
        run(tmp_path / "c", {"map_seen": 0.1}, targets="/after/shards", fingerprint="bbb"),
    ]
    rows = standings(made)
    assert [row.runs for row in rows] == [("a", "b"), ("c",)]
    assert [row.settings for row in rows] == [{"targets": "shards aaa"}, {"targets": "shards bbb"}]


def test_runs_without_a_summary_or_a_score(tmp_path: Path, runs: list[Path]) -> None:
    unfinished = run(tmp_path / "unfinished", None, objective="embedding")
    scoreless = run(tmp_path / "scoreless", {}, objective="logits")
    (tmp_path / "foreign").mkdir()
    rows = standings([unfinished, scoreless, tmp_path / "foreign", *runs])
    assert [row.settings["objective"] for row in rows] == ["lfi", "none", "logits"]
    assert standings_table(rows)[1][-1] == ["logits", "1", "–", "–"]
    assert standings([]) == standings([unfinished]) == []
    assert standings_table([]) == (["seeds"], [])


def test_a_broken_run_is_named(tmp_path: Path) -> None:
    broken = run(tmp_path / "broken", {})
    (broken / "config.json").write_text("{}")
    with pytest.raises(RunError, match="broken"):
        standings([broken])


def test_markdown(runs: list[Path]) -> None:
    lines = standings_markdown(standings(runs)).splitlines()
    assert lines[:4] == [
        "| objective | seeds | mAP, seen domains | mAP, held-out domains |",
        "| --- | --- | --- | --- |",
        "| lfi | 3 | 52.0 ± 8.6 | 10.0 ± 0.0 |",
        "| none | 3 | 30.0 ± 24.8 | 10.0 ± 0.0 |",
    ]
    assert "95 %" in lines[-1]


def test_csv_holds_shares(runs: list[Path]) -> None:
    first, second = csv.DictReader(io.StringIO(standings_csv(standings(runs))))
    assert (first["objective"], first["seeds"]) == ("lfi", "0 1 2")
    assert float(second["map_seen"]) == pytest.approx(0.3)
    assert float(second["map_seen_high"]) - 0.3 == pytest.approx(0.3 - float(second["map_seen_low"]))

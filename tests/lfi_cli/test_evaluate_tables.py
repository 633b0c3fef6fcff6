"""How results of evaluation read: a run as facts, several as a table that tells how many seeds had a score."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lfi_cli.evaluate import show_run, show_tables
from lfi_cli.output import plain_console
from lfi_pipeline.evaluation.protocols import ProtocolResult
from lfi_pipeline.report.statistics import Estimate
from lfi_pipeline.report.views import SeedRow


def console() -> Console:
    return plain_console(file=io.StringIO(), width=200)


def shown(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_a_run_is_told_with_units_and_without_what_it_lacks() -> None:
    on = console()
    details = {
        "reference": {"same_seed": True, "steps": 1200, "runs": ["none-0"]},
        "score_at_third": None,
        "goal": 0.5,
        "reached": False,
        "best": 0.25,
    }
    result = ProtocolResult(protocol="convergence", settings={}, scores={}, details=details, seconds=2.0)
    show_run(on, Path("runs/lfi-0"), {"convergence": result})
    text = shown(on)
    assert "lfi-0: convergence" in text
    assert "none-0: 50.0 %, at the end of 1,200 steps (of the same seed)" in text
    assert "never; best 25.0 %" in text
    assert "third" not in text


def test_groups_are_listed_and_the_worst_is_named() -> None:
    on = console()
    water = {"class": "landbird", "field": "water", "images": 40, "accuracy": 0.25, "training_share": 0.05}
    land = {"class": "landbird", "field": "land", "images": 60, "accuracy": 0.9, "training_share": 0.95}
    small = {"class": "waterbird", "field": "land", "images": 2, "accuracy": 0.0, "training_share": 0.0}
    details = {"groups": [water, land], "worst": {"class": "landbird", "field": "water"}, "left_out": [small]}
    scores = {"worst_group": 0.25, "mean": 0.64, "adjusted": None}
    result = ProtocolResult(protocol="worst-group", settings={}, scores=scores, details=details, seconds=2.0)
    show_run(on, Path("runs/lfi-0"), {"worst-group": result})
    text = shown(on)
    assert "worst group, top-1" in text
    assert "top-1 25.0 % (40 images; 5.0 % of training)" in text
    assert "waterbird, land (2 images)" in text
    assert "as frequent as in training" not in text  # it is not defined
    by_field = {"groups": [{**water, "class": ...}], "worst": {"field": "water"}, "left_out": []}
    del by_field["groups"][0]["class"]  # type: ignore[attr-defined]
    show_run(on, Path("runs/lfi-0"), {"worst-group": replace(result, details=by_field)})
    assert "landbird" not in shown(on).removeprefix(text)


def test_seeds_without_a_score_do_not_vanish_in_the_mean() -> None:
    on = console()
    row = SeedRow(label="lfi", seeds=(0, 1, 2), scores={"map_seen": Estimate(mean=0.5, half=0.2, count=2)})
    show_tables(on, {"classification": [row]}, ["A note [of one]."])
    text = shown(on)
    assert "50.0 ± 20.0 (2 of 3)" in text
    assert "A note [of one]." in text

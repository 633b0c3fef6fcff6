"""lfi evaluate --protocol cross-domain and zero-shot"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.parse import unseal_folder
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers import extract as extraction
from tests.lfi_cli.conftest import STUDENT

Fails = Callable[..., str]


def test_left_out_domains_of_two_seeds(lfi: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained, tmp_path / "lfi-1"))
    record = json.loads((other / "config.json").read_text())
    record["settings"]["seed"] = record["seed"] = 1
    unseal_folder(other)  # changed by hand
    (other / "config.json").write_text(json.dumps(record))
    words = ("evaluate", trained, other, "--protocol", "cross-domain", "--splits", "val", "--device", "cpu")
    result = lfi(*words, "--json").json
    score = result["runs"][str(trained)]["cross-domain"]["scores"]["map"]
    (table,) = result["tables"]["cross-domain"]
    assert table["domains"] == ["photo"]
    assert table["rows"][0]["domains"]["photo"] == {"mean": score, "error": 0.0, "half": 0.0, "seeds": [0, 1]}
    shown = lfi(*words)
    assert shown.code == 0
    for told in ("left-out domain, mAP", "photo", "standard error", "colour, grey, outline"):
        assert told in shown.out


def test_groups_of_a_split_that_is_named(
    lfi: Callable[..., Any],
    fails: Fails,
    trained: Path,
    tiny_teacher: CocaTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scenes whose backgrounds give the class away in training, and in the test split do not."""
    scenes, shards, run = (tmp_path / name for name in ("scenes", "shards", "run"))
    counts = ("--train", 24, "--val", 24, "--test", 48)
    assert lfi("make-scenes", "--out", scenes, "--spurious", 0.95, *counts, "--size", 64).code == 0
    monkeypatch.setattr(extraction, "load_teacher", lambda name, **_: tiny_teacher)
    extract = ("--dataset", "scenes", "--data-root", scenes, "--words", 2, "--device", "cpu")
    assert lfi("extract-teacher", *extract, "--out", shards).code == 0
    assert lfi("train", "--targets", shards, *STUDENT, "--objective", "none", "--out", run).code == 0
    words = ("evaluate", run, "--protocol", "worst-group", "--device", "cpu", "--groups", "field", "--split", "test")
    result = lfi(*words, "--json").json["runs"][str(run)]["worst-group"]
    assert result["settings"]["split"] == "test"
    assert {group["field"]: group["images"] for group in result["details"]["groups"]} == {
        "aligned": 12,
        "conflicting": 36,
    }
    assert result["scores"]["mean"] is not None
    shown = lfi(*words)
    assert shown.code == 0
    for told in ("worst group, top-1", "all images, top-1", "100.0 % of training", "conflicting"):
        assert told in shown.out
    assert "one label each" in fails("ConfigError", "evaluate", trained, "--protocol", "worst-group", "--device", "cpu")
    refused = fails("ConfigError", "evaluate", trained, "--protocol", "cross-domain", "--split", "val")
    assert "--split is an option of protocol classification or worst-group" in refused


def test_class_names_as_queries(
    lfi: Callable[..., Any], fails: Fails, trained: Path, tiny_val_targets: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = ("--config", trained / "config.toml", "--objective", "lfi+presence", "--device", "cpu")
    assert lfi("train", *settings, "--out", run).code == 0
    words = ("evaluate", run, "--protocol", "zero-shot", "--targets", tiny_val_targets, "--device", "cpu")
    found = lfi(*words, "--json").json["runs"][str(run)]["zero-shot"]
    assert found["scores"].keys() == {"map", "teacher_map"}
    shown = lfi(*words)
    assert shown.code == 0
    for told in ("zero-shot mAP", "teacher's zero-shot mAP", "chance", "0 of 16 images, 64 of 64 classes"):
        assert told in shown.out
    assert "needs --targets" in fails("ConfigError", "evaluate", run, "--protocol", "zero-shot")
    asked = ("--protocol", "zero-shot", "--targets", tiny_val_targets, "--device", "cpu")
    assert "readout 'text'" in fails("ConfigError", "evaluate", trained, *asked)

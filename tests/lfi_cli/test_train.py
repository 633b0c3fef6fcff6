"""lfi train"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Fails = Callable[..., str]
STUDENT = (
    *("--student", "vit_tiny_patch16_224", "--image-size", 64, "--patch-size", 16),
    *("--student-arg", "depth=3", "--student-arg", "embed_dim=32", "--student-arg", "num_heads=2"),
    *("--query-width", 16, "--query-heads", 2, "--batch-size", 8, "--epochs", 1, "--device", "cpu"),
)


def test_a_run(lfi: Callable[..., Any], tiny_targets: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("train", "--targets", tiny_targets, *STUDENT, "--seed", 3, "--hold-out", "grey", "--out", run)
    ended = lfi(*words, "--json")
    assert ended.code == 0
    result = ended.json
    assert result["out"] == str(run)
    assert result["steps"] == 2
    assert 0 <= result["map_seen"] <= 1
    assert 0 <= result["map_heldout"] <= 1
    assert result["parameters"]["queries"] > 0
    assert "<- teacher layer 0" in ended.err
    config = json.loads((run / "config.json").read_text())
    assert config["hold_out"] == ["grey"]
    assert config["settings"]["student_arg"] == {"depth": 3, "embed_dim": 32, "num_heads": 2}

    again = lfi(*words)  # finished: shown again
    assert again.code == 0
    assert "mAP, held-out domains" in again.out


def test_the_run_is_named_after_what_it_is(
    lfi: Callable[..., Any], tiny_targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = lfi("train", "--targets", tiny_targets, *STUDENT, "--maps", "shuffled", "--state", "reset", "--json")
    assert ended.json["out"] == "runs/vit_tiny_patch16_224-lfi-shuffled-reset-0"
    assert (tmp_path / ended.json["out"] / "summary.json").is_file()


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("UnknownNameError", ("--objective", "lif"), "embedding, lfi, logits, none, presence"),
        ("UnknownNameError", ("--maps", "random"), "shuffled, teacher, uniform"),
        ("UnknownNameError", ("--state", "sticky"), "persistent, reset"),
        ("UnknownNameError", ("--precision", "fp8"), "bf16, fp32"),
        ("UnknownNameError", ("--val-split", "dev"), "train, val"),
        ("ConfigError", ("--objective", "none", "--maps", "uniform"), "control of the term 'lfi'"),
        ("ConfigError", ("--student-arg", "depth"), "KEY=VALUE"),
        ("ConfigError", ("--student-arg", "no_such=1"), "no_such"),
        ("ConfigError", ("--taps", "1,x"), "a list of whole numbers, got [1, 'x']"),
        ("ConfigError", ("--taps", "7"), "from 0 to 2"),
        ("ConfigError", ("--query-heads", 3), "divisible by heads"),
        ("ConfigError", ("--hold-out", "sketch"), "'colour', 'grey', 'outline'"),
        ("ConfigError", ("--epochs", 0), "epochs must be 1 or more"),
        ("ConfigError", ("--flip", 2), "--hflip must be from 0 to 1, got 2"),
        ("ConfigError", ("--seed", -1), "seed"),
        ("ConfigError", ("--device", "tpu9"), "device must be auto"),
        ("ConfigError", ("--image-size", 60), "multiple of the patch size 16"),
        ("DatasetError", ("--data-root", "nowhere"), "nowhere"),
    ],
)
def test_options_that_cannot_work(
    fails: Fails, tiny_targets: Path, tmp_path: Path, kind: str, options: tuple[object, ...], words: str
) -> None:
    out = tmp_path / "run"
    assert words in fails(kind, "train", "--targets", tiny_targets, *STUDENT, *options, "--out", out)
    assert not out.exists()


def test_an_unknown_student_lists_near_ones(fails: Fails, tiny_targets: Path, tmp_path: Path) -> None:
    words = ("train", "--targets", tiny_targets, "--batch-size", 8, "--student", "resnt18", "--out", tmp_path / "run")
    assert "Did you mean 'resnet18'" in fails("UnknownNameError", *words)
    assert not (tmp_path / "run").exists()


def test_targets_that_are_none(fails: Fails, scenes_root: Path, tmp_path: Path) -> None:
    for path in (scenes_root, tmp_path / "nowhere"):
        message = fails("NotTargetsError", "train", "--targets", path, *STUDENT, "--out", tmp_path / "run")
        assert str(path) in message
        assert "not a targets cache" in message


def test_targets_of_an_unknown_version(fails: Fails, tiny_targets: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(tiny_targets, shards)
    text = (shards / "manifest.json").read_text()
    (shards / "manifest.json").write_text(text.replace('"version": 2', '"version": 99'))
    assert "version 99" in fails("TargetsError", "train", "--targets", shards, *STUDENT, "--out", tmp_path / "run")


def test_an_output_that_holds_something_else(fails: Fails, tiny_targets: Path, trained: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    common = ("train", "--targets", tiny_targets, *STUDENT)
    assert "other files" in fails("OutputExistsError", *common, "--out", foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    assert "seed: 0 there, 7 asked" in fails("OutputExistsError", *common, "--seed", 7, "--out", trained)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_changed_is_named(
    lfi: Callable[..., Any], scenes_root: Path, tiny_targets: Path, tmp_path: Path, workers: int
) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    (root / "train" / "000000000003.png").write_bytes((root / "train" / "000000000004.png").read_bytes())
    options = ("--data-root", root, "--workers", workers, "--out", tmp_path / "run")
    ended = lfi("train", "--targets", tiny_targets, *STUDENT, *options, "--json")
    assert ended.code == 1
    assert ended.json["error"]["type"] == "CorruptTargetsError"
    assert "sample 000000000003" in ended.json["error"]["message"]
    assert "Traceback" not in ended.err

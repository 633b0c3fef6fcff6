"""lfi evaluate"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.parse import unseal_folder
from lfi_pipeline.evaluation import protocols as run
from lfi_pipeline.evaluation.config import PROTOCOL_CONFIGS
from lfi_pipeline.evaluation.protocols import latest_results

Fails = Callable[..., str]


def test_scores(lfi: Callable[..., Any], trained: Path, tiny_val_targets: Path) -> None:
    words = ("evaluate", trained, "--targets", tiny_val_targets, "--no-probes", "--device", "cpu")
    result = lfi(*words, "--json").json
    assert list(result) == ["runs", "tables"]
    assert result["tables"] == {}
    found = result["runs"][str(trained)]
    assert list(found) == ["classification", "grounding"]
    for protocol, told in found.items():
        kept = latest_results(trained).get(protocol)
        assert kept is not None
        assert {"protocol": protocol, **told} == dataclasses.asdict(kept)
    assert found["classification"]["scores"].keys() >= {"map_seen", "map_heldout"}
    assert len(found["grounding"]["details"]["taps"]) == 3
    shown = lfi(*words)
    assert shown.code == 0
    for name in ("mAP, seen domains", "mAP, photo", "tap 2", "teacher's peak in mask", "chance"):
        assert name in shown.out


def test_probes_without_targets(lfi: Callable[..., Any], trained: Path) -> None:
    ended = lfi("evaluate", trained, "--probe-limit", 20, "--knn-k", 5, "--device", "cpu", "--json")
    assert ended.code == 0
    assert list(ended.json["runs"][str(trained)]) == ["classification"]
    found = ended.json["runs"][str(trained)]["classification"]
    assert found["scores"].keys() >= {"knn_map_seen", "linear_map_heldout"}
    assert (found["settings"]["probe_limit"], found["settings"]["knn_k"]) == (20, 5)
    shown = lfi("evaluate", trained, "--probe-limit", 20, "--knn-k", 5, "--device", "cpu").out
    assert "20 training images; L2" in shown


def test_targets_without_masks_are_told_and_the_rest_is_scored(
    lfi: Callable[..., Any], trained: Path, tiny_val_targets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = run.read_dataset
    monkeypatch.setattr(run, "read_dataset", lambda *names: dataclasses.replace(read(*names), instances={}))
    words = ("evaluate", trained, "--targets", tiny_val_targets, "--no-probes", "--device", "cpu")
    ended = lfi(*words, "--json")
    assert list(ended.json["runs"][str(trained)]) == ["classification"]
    assert "Grounding is not scored. scenes, split val, has no masks." in ended.err


def test_one_protocol_of_two_seeds(lfi: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained, tmp_path / "lfi-1"))
    record = json.loads((other / "config.json").read_text())
    record["settings"]["seed"] = record["seed"] = 1
    unseal_folder(other)  # changed by hand
    unseal_folder(other)  # changed by hand
    (other / "config.json").write_text(json.dumps(record))
    words = ("evaluate", trained, other, "--protocol", "classification", "--no-probes", "--device", "cpu")
    result = lfi(*words, "--json").json
    (row,) = result["tables"]["classification"]
    assert (row["label"], row["seeds"]) == ("lfi", [0, 1])
    (mean,) = {found["classification"]["scores"]["map_seen"] for found in result["runs"].values()}
    assert row["scores"]["map_seen"] == {"mean": pytest.approx(mean), "half": 0.0, "count": 2}
    shown = lfi(*words)
    assert shown.code == 0
    assert f"{100 * mean:.1f} ± 0.0" in " ".join(shown.out.split())


def test_seeds_that_never_reached_the_reference_do_not_vanish_in_a_mean(
    lfi: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    """One seed begins above the reference's final score, the other stays below it."""
    runs = [Path(shutil.copytree(trained, tmp_path / name)) for name in ("none", "one", "two")]
    for path, seed, score in zip(runs, (7, 0, 1), (0.5, 0.6, 0.4), strict=True):
        record = json.loads((path / "config.json").read_text())
        record["settings"]["seed"] = record["seed"] = seed
        unseal_folder(path)  # changed by hand
        unseal_folder(path)  # changed by hand
        (path / "config.json").write_text(json.dumps(record))
        (path / "metrics.jsonl").write_text(json.dumps({"event": "val", "step": 10, "map_seen": score}) + "\n")
    words = ("evaluate", *runs[1:], "--protocol", "convergence", "--reference", runs[0])
    found = lfi(*words, "--json").json
    (row,) = found["tables"]["convergence"]
    assert row["scores"]["steps"] == {"mean": 10, "half": None, "count": 1}
    assert row["seeds"] == [0, 1]
    shown = lfi(*words).out
    assert "(1 of 2)" in shown
    assert "never; best 40.0 %" in shown


def test_help_tells_the_protocols_options_and_defaults(lfi: Callable[..., Any]) -> None:
    out = " ".join(lfi("evaluate", "--help").out.split())
    assert "Protocol grounding" in out
    for protocol in PROTOCOL_CONFIGS:
        assert protocol in out.partition("--protocol")[2]
    assert "[default: 12]" in out
    assert "[default: last]" in out


def test_what_cannot_be_scored(
    fails: Fails, trained: Path, tiny_targets: Path, tiny_val_targets: Path, scenes_root: Path, tmp_path: Path
) -> None:
    assert "must be a run directory" in fails("RunError", "evaluate", tmp_path / "nowhere")
    assert "not a targets cache" in fails("NotTargetsError", "evaluate", trained, "--targets", scenes_root)
    assert "split val" in fails("DatasetError", "evaluate", trained, "--targets", tiny_targets)
    assert "device" in fails("ConfigError", "evaluate", trained, "--device", "tpu9")
    assert "gallery" in fails("ConfigError", "evaluate", trained, "--targets", tiny_val_targets, "--gallery", -1)
    assert "add --protocol grounding" in fails("ConfigError", "evaluate", trained, "--gallery", 3)
    assert "--reference RUN" in fails("ConfigError", "evaluate", trained, "--protocol", "convergence")
    assert "needs --targets" in fails("ConfigError", "evaluate", trained, "--protocol", "grounding")
    assert "Did you mean" in fails("UnknownNameError", "evaluate", trained, "--protocol", "groundin")
    words = ("--protocol", "convergence", "--reference", trained, "--targets", tiny_val_targets)
    assert "asked for: convergence" in fails("ConfigError", "evaluate", trained, *words)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100])
def test_a_broken_checkpoint(fails: Fails, trained: Path, content: bytes) -> None:
    (trained / "checkpoints" / "last.safetensors").write_bytes(content)
    assert "last.safetensors" in fails("RunError", "evaluate", trained)

"""Protocol classification: the scores of a run's own head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lfi_pipeline.data import images
from lfi_pipeline.evaluation import EvaluationConfig, evaluate_runs
from lfi_pipeline.evaluation.classification import ClassificationConfig
from lfi_pipeline.evaluation.results import ProtocolResult
from lfi_pipeline.report import load_run as read_run

CPU = EvaluationConfig(device="cpu")


def classification_of(run: Path, common: EvaluationConfig = CPU) -> ProtocolResult:
    return evaluate_runs([run], {"classification": ClassificationConfig()}, common)[run]["classification"]


def test_the_head_scores_as_at_the_end_of_training(run_of: dict[str, Path]) -> None:
    found = classification_of(run_of["lfi"])
    summary = json.loads((run_of["lfi"] / "summary.json").read_text())
    assert found.scores["map_seen"] == pytest.approx(summary["map_seen"])
    assert found.scores["map_heldout"] == pytest.approx(summary["map_heldout"])
    domains = found.details["map_per_domain"]
    assert set(domains) == {"colour", "grey", "outline", "photo"}
    assert domains["photo"] == found.scores["map_heldout"]
    assert all(0 <= value <= 1 for value in domains.values())
    assert found.settings == {"dataset": "scenes", "split": "val", "weights": "last"}
    assert read_run(run_of["lfi"]).map_seen == found.scores["map_seen"]


def test_held_out_training_domains_are_scored_apart(run_of: dict[str, Path]) -> None:
    path = run_of["none"] / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"seen_domains": ["colour"]}))
    found = classification_of(run_of["none"])
    assert found.scores["map_seen"] == found.details["map_per_domain"]["colour"]
    assert found.scores["map_heldout"] not in (None, found.details["map_per_domain"]["photo"])


def test_best_weights_and_moved_images_on_request(
    run_of: dict[str, Path], scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of["lfi"]
    moved = Path(shutil.copytree(scenes_root, tmp_path / "moved"))
    roots: list[Path] = []
    read = images.read_bytes
    monkeypatch.setattr(images, "read_bytes", lambda root, path: (roots.append(root), read(root, path))[1])
    common = EvaluationConfig(device="cpu", weights="best", data_root=moved)
    best = classification_of(run, common)
    assert best.settings["weights"] == "best"
    assert set(roots) == {moved}
    weights = load_file(run / "checkpoints/best.safetensors")
    save_file({name: torch.zeros_like(value) for name, value in weights.items()}, run / "checkpoints/best.safetensors")
    assert classification_of(run, common).scores != best.scores
    assert classification_of(run).scores == best.scores


def test_a_run_without_a_task_has_no_heads_scores(run_of: dict[str, Path]) -> None:
    path = run_of["none"] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "none"}))
    weights = run_of["none"] / "checkpoints/last.safetensors"
    save_file({n: v for n, v in load_file(weights).items() if not n.startswith("head.")}, weights)
    assert not {name for name in classification_of(run_of["none"]).scores if name.startswith(("map_", "top"))}

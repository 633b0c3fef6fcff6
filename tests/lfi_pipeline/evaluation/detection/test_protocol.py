"""Protocol detection from run to result."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.parse import unseal_folder
from lfi_pipeline.evaluation.config import DetectionConfig, EvaluationConfig
from lfi_pipeline.evaluation.detection import detection, protocol
from lfi_pipeline.evaluation.detection.coco_data import read_split
from lfi_pipeline.evaluation.detection.protocol import coco_truth, score_detections
from lfi_pipeline.evaluation.protocols import read_results, write_result
from lfi_pipeline.training import run_dir

CPU = EvaluationConfig(device="cpu")
SHORT = DetectionConfig(iterations=2, batch_size=4, detection_width=16, lr=1e-3)


def test_the_runs_own_data_set_is_the_default(run_of: dict[str, Path], scenes_root: Path) -> None:
    result = detection(run_of["lfi"], CPU, replace(SHORT, keep_detections=True))
    assert result.settings == {
        "dataset": "scenes",
        "train_split": "train",
        "split": "val",
        "class_agnostic": False,
        "weights": "last",
        "source": "run",
        "iterations": 2,
        "batch_size": 4,
        "lr": 1e-3,
        "width": 16,
        "image_size": 64,
        "seed": "the run's",
    }
    assert set(result.scores) == {"box_ap", "box_ap50", "mask_ap", "mask_ap50"}
    assert all(value is not None and 0 <= value <= 1 for value in result.scores.values())
    assert (result.details["train_images"], result.details["val_images"]) == (24, 16)
    assert result.details["strides"] == [4, 8, 16, 32]
    assert result.seconds > result.details["finetune_seconds"] > 0
    assert len(result.details["mask"]["per_class"]) == 64
    path = write_result(run_of["lfi"], result)
    assert read_results(run_of["lfi"], "detection")[-1] == result
    kept = path.with_name(path.name.replace("detection-", "detections-") + ".gz")
    with gzip.open(kept, "rt") as file:
        detections = json.load(file)
    truth = coco_truth(read_split(scenes_root / "annotations/instances_val.json"))
    assert score_detections(truth, detections, "mask").overall == result.details["mask"]["overall"]


def test_any_directory_in_cocos_layout_serves(run_of: dict[str, Path], coco_root: Path) -> None:
    config = replace(SHORT, detection_data=coco_root, image_size=32, seed=7)
    first, second = detection(run_of["none"], CPU, config), detection(run_of["none"], CPU, config)
    assert first.settings["dataset"] == "small"
    assert (first.settings["train_split"], first.settings["split"]) == ("train2030", "val")
    assert (first.settings["image_size"], first.settings["seed"]) == (32, 7)
    assert (first.details["train_images"], first.details["val_images"]) == (3, 4)
    assert (first.details["train_objects"], first.details["val_objects"]) == (4, 7)
    assert first.details["empty_boxes_dropped"] == 2
    assert first.scores == second.scores
    assert first.details["loss_last"] == second.details["loss_last"]
    assert not (run_of["none"] / "evaluation").exists()  # only what is asked for is written here


@pytest.mark.parametrize("before", [3600.0, None])
def test_the_time_of_an_interrupted_fine_tuning_is_whole_or_left_out(
    run_of: dict[str, Path], coco_root: Path, monkeypatch: pytest.MonkeyPatch, before: float | None
) -> None:
    monkeypatch.setattr(protocol, "finetune", lambda *_, **__: ([1.0, 0.5], before))
    result = detection(run_of["none"], CPU, replace(SHORT, detection_data=coco_root, image_size=32))
    spent = result.details["finetune_seconds"]
    assert spent is None if before is None else 3600 < spent < result.seconds


def test_scratch_is_the_same_backbone_with_other_weights(run_of: dict[str, Path], coco_root: Path) -> None:
    config = replace(SHORT, detection_data=coco_root, iterations=1)
    trained, scratch = (detection(run_of["lfi"], CPU, replace(config, source=source)) for source in ("run", "scratch"))
    assert (scratch.settings["source"], scratch.settings["weights"]) == ("scratch", None)
    assert scratch.details["parameters"] == trained.details["parameters"]
    assert scratch.details["loss_first"] != trained.details["loss_first"]
    other = detection(run_of["none"], CPU, replace(config, source="scratch"))
    assert other.details["loss_first"] == scratch.details["loss_first"]  # of the run, the scratch has only the shape


def test_the_seed_is_the_runs_own_unless_told(
    run_of: dict[str, Path], coco_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_of["none"] / run_dir.CONFIG
    record = json.loads(path.read_text())
    record["settings"]["seed"] = 3
    unseal_folder(path.parent)  # changed by hand
    path.write_text(json.dumps(record))
    config = replace(SHORT, detection_data=coco_root, iterations=1)
    own, told = detection(run_of["none"], CPU, config), detection(run_of["none"], CPU, replace(config, seed=3))
    assert (own.settings["seed"], own.details["seed"]) == ("the run's", 3)
    assert own.details["loss_first"] == told.details["loss_first"]
    other = detection(run_of["none"], CPU, replace(config, seed=4))
    assert other.details["loss_first"] != own.details["loss_first"]


def test_what_cannot_work_is_refused_before_the_fine_tuning(
    run_of: dict[str, Path], coco_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "finetune", lambda *_, **__: pytest.fail("the fine-tuning began"))
    with pytest.raises(ConfigError, match="multiple of the backbone's patch size, 16, got 40"):
        detection(run_of["none"], CPU, replace(SHORT, image_size=40))
    file = coco_root / "annotations/instances_val.json"
    record = json.loads(file.read_text())
    record["categories"][0]["name"] = "blue"
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="must list the same categories"):
        detection(run_of["none"], CPU, replace(SHORT, detection_data=coco_root))
    with pytest.raises(ConfigError, match="iterations must be 1 or more, got 0"):
        DetectionConfig(iterations=0)
    with pytest.raises(ConfigError, match="lr must be positive and finite"):
        DetectionConfig(lr=0)
    with pytest.raises(UnknownNameError, match="scratch"):
        DetectionConfig(source="skratch")

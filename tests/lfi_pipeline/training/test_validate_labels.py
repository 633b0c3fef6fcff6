"""Validation splits whose labels are not those of the cache, and splits that have no score."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers import extract as extraction
from lfi_pipeline.training import TrainConfig, loop
from tests.lfi_pipeline.data.layouts import make_imagefolder, make_webdataset, write
from tests.lfi_pipeline.training.running import metrics, train_one

MakeConfig = Callable[..., TrainConfig]
Extract = Callable[[Path, str], Path]


@pytest.fixture
def extract_train(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> Extract:
    """Return a function that extracts the split `train` of a data set."""
    monkeypatch.setattr(extraction, "load_teacher", lambda name, **_: tiny_teacher)

    def extract(root: Path, dataset: str) -> Path:
        config = extraction.ExtractConfig(dataset=dataset, data_root=root, words=4, views=("full",), device="cpu")
        extraction.extract(config, root.parent / "targets")
        return root.parent / "targets"

    return extract


def noise(seed: int) -> bytes:
    """Return a JPEG of noise; images of one colour give a random teacher nothing to attend to."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(labels: list[Any], kind: str = "cls") -> dict[str, Mapping[str, Any]]:
    return {f"{i:04d}": {"jpg": noise(i), kind: content} for i, content in enumerate(labels)}


def config_for(make_config: MakeConfig, targets: Path, **changes: Any) -> TrainConfig:
    return make_config(targets=targets, val_split="val", objective="none", flip=0.0, batch_size=4, **changes)


def test_the_same_images_under_other_names_are_refused_before_the_first_step(
    make_config: MakeConfig, extract_train: Extract, tmp_path: Path
) -> None:
    names = ["ant", "bee", "cow", "doe"] * 2
    make_webdataset(tmp_path / "d", {"train-0.tar": tar([{"label": name} for name in names], "json")})
    targets = extract_train(tmp_path / "d", "webdataset")
    others = {"ant": "one", "bee": "two", "cow": "three", "doe": "two"}
    make_webdataset(tmp_path / "d", {"val-0.tar": tar([{"label": others[name]} for name in names], "json")})
    with pytest.raises(DatasetError, match=r"'one', 'three', 'two' are not among them.*'ant', 'bee', 'cow', 'doe'"):
        train_one(config_for(make_config, targets), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bare_numbers_may_be_fewer_than_the_cache_has(
    make_config: MakeConfig, extract_train: Extract, tmp_path: Path
) -> None:
    make_webdataset(
        tmp_path / "d",
        {"train-0.tar": tar(["0", "1", "2", "3"] * 2), "val-0.tar": tar(["1", "0", "1", "0"])},
    )
    targets = extract_train(tmp_path / "d", "webdataset")
    assert 0 <= train_one(config_for(make_config, targets, epochs=1), tmp_path / "run")["top1_seen"] <= 1
    make_webdataset(tmp_path / "d", {"val-0.tar": tar(["1", "4"])})
    with pytest.raises(DatasetError, match="'4' is not among them"):
        train_one(config_for(make_config, targets), tmp_path / "more")


def test_a_class_that_was_added_to_the_validation_split_later_is_refused(
    make_config: MakeConfig, extract_train: Extract, tmp_path: Path
) -> None:
    root = make_imagefolder(tmp_path / "d", {"train": {"b": 4, "c": 4}, "val": {"b": 2, "c": 2}})
    for seed, path in enumerate(sorted(root.rglob("*.jpg"))):
        path.write_bytes(noise(seed))
    targets = extract_train(root, "imagefolder")
    summary = train_one(config_for(make_config, targets, epochs=1), tmp_path / "before")
    assert summary["top1_seen"] is not None
    write(root / "val/a/0.jpg", noise(99))
    with pytest.raises(DatasetError, match=r"'a' is not among them.*'a', 'b', 'c'.*'b', 'c'"):
        train_one(config_for(make_config, targets), tmp_path / "run")


@pytest.mark.parametrize("labels", [None, {}], ids=["unlabelled", "records without a label"])
def test_a_split_without_labels_is_told_before_the_first_step(
    make_config: MakeConfig, extract_train: Extract, tmp_path: Path, labels: Any
) -> None:
    val = {f"{i}": {"jpg": noise(i)} | ({} if labels is None else {"json": labels}) for i in range(2)}
    make_webdataset(tmp_path / "d", {"train-0.tar": tar(["0", "1"] * 4), "val-0.tar": val})
    targets = extract_train(tmp_path / "d", "webdataset")
    with pytest.raises(DatasetError, match="must have labels to be scored on; none of its 2 images"):
        train_one(config_for(make_config, targets), tmp_path / "run")


def test_a_domain_without_a_positive_has_no_score_and_costs_nothing(
    make_config: MakeConfig, extract_train: Extract, tmp_path: Path
) -> None:
    train = [{"labels": [name, "x"], "domain": "photo"} for name in ("a", "b")] * 4
    val = [{"labels": ["a"], "domain": "photo"}, {"labels": [], "domain": "sketch"}]
    make_webdataset(tmp_path / "d", {"train-0.tar": tar(train, "json"), "val-0.tar": tar(val, "json")})
    targets = extract_train(tmp_path / "d", "webdataset")
    summary = train_one(config_for(make_config, targets), tmp_path / "run")
    assert summary["map_per_domain"]["sketch"] is None
    assert summary["map_heldout"] is None
    assert summary["map_per_domain"]["photo"] == summary["map_seen"]


def test_scoring_that_fails_costs_no_epoch(
    make_config: MakeConfig, extract_train: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_webdataset(tmp_path / "d", {"train-0.tar": tar(["0", "1"] * 4), "val-0.tar": tar(["0", "1"])})
    targets = extract_train(tmp_path / "d", "webdataset")
    whole = train_one(config_for(make_config, targets), tmp_path / "whole")
    predict, calls = loop.predict, []

    def fails_once(*args: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the drive went away")
        return predict(*args, **keywords)

    monkeypatch.setattr(loop, "predict", fails_once)
    with pytest.raises(OSError, match="went away"):
        train_one(config_for(make_config, targets), tmp_path / "run")
    assert (tmp_path / "run" / loop.STATE).is_file()
    resumed = train_one(config_for(make_config, targets), tmp_path / "run")
    scores = [name for name in whole if name.startswith(("top", "map"))]
    assert [resumed[name] for name in scores] == [whole[name] for name in scores]
    epochs = [line["epoch"] for line in metrics(tmp_path / "run") if line["event"] == "val"]
    assert epochs == [1, 2]
    assert json.loads((tmp_path / "run/config.json").read_text())["task"] == "classification"


def test_an_export_with_background_images_and_no_validation_split_is_extracted_and_trained(
    make_config: MakeConfig, extract_train: Extract, tmp_path: Path
) -> None:
    names = [f"frame_{i:06d}.jpg" for i in range(24)]
    objects = [
        {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 9, 1, 9, 9]]}
        for i in range(1, 23)  # the first and the last image are background
    ]
    content = {
        "images": [{"id": i, "file_name": name, "height": 32, "width": 32} for i, name in enumerate(names)],
        "annotations": objects,
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "tower"}],
    }
    write(tmp_path / "d/annotations/instances_default.json", json.dumps(content))
    for i, name in enumerate(names):
        write(tmp_path / "d/images/default" / name, noise(i))
    targets = extract_train(tmp_path / "d", "folder")
    store = TargetStore.open(targets)
    captions = dict(zip(store.index.keys, store.index.captions, strict=True))
    assert captions["frame_000001"] == "a photo of a tower."
    assert "" in captions.values()
    summary = train_one(config_for(make_config, targets, epochs=1), tmp_path / "run")
    val = json.loads((tmp_path / "run/config.json").read_text())["dataset"]["val_samples"]
    assert val + len(captions) == 24
    assert "map_seen" in summary


def test_images_that_are_trained_on_and_scored_are_told_of(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_one(make_config(val_split="train", epochs=1), tmp_path / "run")
    assert "24 of 24 images of split train are in the cache" in caplog.text
    caplog.clear()
    train_one(make_config(epochs=1), tmp_path / "other")
    assert caplog.text == ""

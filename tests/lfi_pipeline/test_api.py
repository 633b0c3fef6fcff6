"""`import lfi_pipeline as lfi`: each function does what its command does, and the names are there at once."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image

import lfi_pipeline as lfi
from lfi_pipeline.core.errors import ConfigError, LFIError, UnknownNameError
from lfi_pipeline.targets.pack import pack
from lfi_pipeline.targets.verify import verify
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers import extract as extraction

RUN: dict[str, Any] = {
    "query_width": 16,
    "query_heads": 2,
    "epochs": 1,
    "batch_size": 8,
    "device": "cpu",
    "head": "queries",
}


@pytest.fixture
def with_tiny_teacher(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "load_teacher", lambda name, **_: tiny_teacher)


@pytest.fixture(scope="module")
def run(tiny_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a query head."""
    out = tmp_path_factory.mktemp("api") / "run"
    summary = lfi.train(tiny_targets, student="resnet10t", image_size=64, out=out, **RUN)
    assert summary["out"] == str(out)
    assert summary["steps"] == 3
    return out


def test_importing_it_costs_nothing() -> None:
    """No torch before it is needed; milliseconds are for a benchmark, this is what they hang on."""
    code = "import sys, lfi_pipeline; print([m for m in ('torch', 'timm', 'numpy', 'open_clip') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_every_name_is_there_and_told_of() -> None:
    assert set(lfi.__all__) <= set(dir(lfi))
    for name in lfi.__all__:
        value = getattr(lfi, name)
        assert inspect.getdoc(value), name
        if inspect.isfunction(value):
            told = inspect.getdoc(value) or ""
            assert "Example:" in told, name
            assert "Args:" in told, name
            assert "Raises:" in told, name
    with pytest.raises(AttributeError, match="no attribute 'distill'"):
        lfi.distill  # noqa: B018


@pytest.mark.usefixtures("with_tiny_teacher")
def test_a_cache_of_a_named_data_set(scenes_root: Path, tmp_path: Path) -> None:
    store = lfi.extract(
        "scenes", data_root=scenes_root, out=tmp_path / "shards", split="val", words=4, views=("full",), device="cpu"
    )
    assert len(store) == 16
    assert store.spec.views == ("full",)
    with pytest.raises(LFIError, match="words"):  # another spec is refused, as on the command line
        lfi.extract("scenes", data_root=scenes_root, out=tmp_path / "shards", split="val", words=5, device="cpu")


@pytest.mark.usefixtures("with_tiny_teacher")
def test_a_manifest_of_ones_own_may_lie_anywhere_and_the_cache_keeps_it(scenes_root: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "elsewhere" / "plants.toml"
    manifest.parent.mkdir()
    splits = [
        f'[splits.{split}]\nimages = "{split}"\ncaptions = "annotations/captions_{split}.json"\n'
        f'instances = "annotations/instances_{split}.json"\n'
        for split in ("train", "val")
    ]
    manifest.write_text('name = "plants"\nlayout = "coco"\n' + "".join(splits))
    made = lfi.extract(manifest, data_root=scenes_root, out=tmp_path / "shards", words=6, device="cpu")
    assert made.spec.dataset.name == "plants"
    manifest.unlink()
    pack(tmp_path / "shards", tmp_path / "packed", layout="webdataset")
    for name in ("shards", "packed"):
        lfi.train(tmp_path / name, student="resnet10t", image_size=64, out=tmp_path / f"run-{name}", **RUN)
    results = lfi.evaluate(tmp_path / "run-shards", probes=False, device="cpu")
    assert results[tmp_path / "run-shards"]["classification"].scores["map_seen"] is not None
    assert not verify(tmp_path / "shards")


@pytest.mark.usefixtures("with_tiny_teacher")
def test_a_cache_of_a_torch_data_set(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    pairs = [(Image.fromarray(each), f"a dog and a cat {i}") for i, each in enumerate(pixels)]
    store = lfi.extract(pairs, out=tmp_path / "shards", words=4, views=("full",), device="cpu")
    assert len(store) == 3
    sample = lfi.TargetDataset(tmp_path / "shards", image_size=64)[0]
    assert {"dog", "cat"} <= set(sample.words)
    with pytest.raises(ConfigError, match="data_root must be left out"):
        lfi.extract(pairs, out=tmp_path / "other", data_root=tmp_path)


def test_a_run_is_scored_exported_and_asked(run: Path, tiny_val_targets: Path, tmp_path: Path) -> None:
    results = lfi.evaluate(run, targets=tiny_val_targets, protocols=("grounding",), device="cpu")
    assert "grounding" in results[run]
    written = lfi.export(run, tmp_path / "exported")
    assert written["check"]["features"] <= 1e-5
    assert timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True) is not None
    model = lfi.load(tmp_path / "exported")
    pixels = np.random.default_rng(1).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    prediction = model.predict(pixels)
    assert len(prediction.answers) == 5
    best = prediction.answers[0]
    assert best.map is not None
    assert best.map.sum() == pytest.approx(1, abs=1e-4)
    assert lfi.show(prediction).size > (0, 0)
    assert lfi.show(prediction, words=[best.name]).size < lfi.show(prediction).size


def test_a_sample_is_shown_with_the_words_that_are_asked_for(tiny_targets: Path) -> None:
    sample = lfi.TargetDataset(tiny_targets, image_size=64)[0]
    words = list(sample.maps)
    whole, one = lfi.show(sample), lfi.show(sample, words=words[:1])
    assert whole.width == one.width
    assert whole.height > one.height
    with pytest.raises(ConfigError, match="must have a map in sample"):
        lfi.show(sample, words=["nothing"])


def test_errors_speak_of_arguments(tiny_targets: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="epoch"):
        lfi.train(tiny_targets, epochz=3)
    with pytest.raises(ConfigError, match=r"epochs must be .*got 0"):
        lfi.train(tiny_targets, epochs=0)
    with pytest.raises(UnknownNameError, match="protocol"):
        lfi.evaluate(tmp_path, protocols=("all",))

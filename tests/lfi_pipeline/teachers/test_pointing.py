"""Live scores of kinds of map beside the cached ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError, TeacherError, UnknownNameError
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.evaluation import grounded_words, teacher_grounding
from lfi_pipeline.targets import TargetStore, TeacherSpec
from lfi_pipeline.teachers import CocaTeacher, pointing, recompute
from lfi_pipeline.teachers import extract as extraction
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.config import PointingConfig
from lfi_pipeline.teachers.pointing import artefacts_of_cache, pointing_by_kind


@pytest.fixture
def val(scenes_root: Path) -> Dataset:
    return read_dataset("scenes", scenes_root, "val")


@pytest.fixture
def loads(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names by which the tiny teacher was asked for."""
    asked: list[str] = []

    def load(name: str, *, device: object, precision: str) -> CocaTeacher:
        asked.append(name)
        return tiny_teacher

    monkeypatch.setattr(recompute, "load_teacher", load)
    return asked


def test_the_live_maps_of_the_caches_own_kind_score_as_the_cached_ones(
    tiny_val_targets: Path, val: Dataset, loads: list[str]
) -> None:
    store = TargetStore.open(tiny_val_targets)
    rows = pointing_by_kind(store, val, PointingConfig(kinds=(store.spec.kind,), batch_size=3, device="cpu"))
    assert loads == ["tiny-coca:test"]
    layers = len(store.spec.layers)
    assert [row.source for row in rows] == ["cache"] * layers + ["live"] * layers
    wholes = teacher_grounding(store, grounded_words(store, val))
    for cached, live, whole in zip(rows[:layers], rows[layers:], wholes, strict=True):
        assert cached.kind == live.kind == store.spec.kind
        assert cached.grounding == whole  # fewer images than the limit: all of them
        assert live.grounding.count == whole.count
        assert live.grounding.area == pytest.approx(whole.area)
        assert live.grounding.mass_in_mask == pytest.approx(whole.mass_in_mask, abs=2e-3)  # the codec's rounding
        assert live.grounding.pointing == pytest.approx(whole.pointing, abs=1.5 / whole.count)


def test_every_kind_row_and_layer(
    tiny_val_targets: Path, val: Dataset, loads: list[str], tiny_teacher: CocaTeacher
) -> None:
    store = TargetStore.open(tiny_val_targets)
    rows = pointing_by_kind(store, val, PointingConfig(device="cpu"))[len(store.spec.layers) :]
    assert {row.kind for row in rows} == set(tiny_teacher.kinds)
    decoder = [f"text_decoder.cross_attn.{i}" for i in range(2)]
    attention = [(row.row, row.layer) for row in rows if row.kind == "attention"]
    assert attention == [(row, layer) for row in ("reading", "emitting") for layer in decoder]
    assert [row.layer for row in rows if row.kind == "gradcam"] == decoder
    assert len({row.grounding.mass_in_mask for row in rows}) == len(rows)


def test_fewer_images_are_spread_over_the_cache(tiny_val_targets: Path, val: Dataset, loads: list[str]) -> None:
    store = TargetStore.open(tiny_val_targets)
    words = grounded_words(store, val)
    some = pointing._some_images(words, 2)
    positions = sorted({word.position for word in words})
    assert sorted({word.position for word in some}) == [positions[0], positions[-1]]
    rows = pointing_by_kind(store, val, PointingConfig(kinds=("attention",), images=2, device="cpu"))
    cached, live = rows[0], rows[-1]
    assert cached.grounding.count == live.grounding.count == len(some) < len(words)


def test_other_weights_are_refused(
    tiny_val_targets: Path, val: Dataset, tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = TeacherSpec(name="tiny-coca", tag="test", weights_sha256="f" * 64, family="coca")
    other = CocaTeacher(tiny_teacher.model, tiny_teacher.tokenizer, identity)
    monkeypatch.setattr(recompute, "load_teacher", lambda name, **_: other)
    with pytest.raises(TeacherError, match=r"but tiny-coca:test has f{64}.*`teacher=tiny-coca:PATH"):
        pointing_by_kind(TargetStore.open(tiny_val_targets), val, PointingConfig(device="cpu"))


def test_a_teacher_that_no_name_finds_says_what_to_give(tiny_val_targets: Path, val: Dataset) -> None:
    store = TargetStore.open(tiny_val_targets)
    with pytest.raises(TeacherError, match="`teacher=tiny-coca:PATH"):
        pointing_by_kind(store, val, PointingConfig(device="cpu"))
    with pytest.raises(UnknownNameError, match="no-such-teacher"):
        pointing_by_kind(store, val, PointingConfig(teacher="no-such-teacher", device="cpu"))


def test_unknown_kinds_and_bad_numbers_are_refused(tiny_val_targets: Path, val: Dataset, loads: list[str]) -> None:
    with pytest.raises(UnknownNameError, match=r"relevence.*Did you mean 'relevance'"):
        pointing_by_kind(TargetStore.open(tiny_val_targets), val, PointingConfig(kinds=("relevence",), device="cpu"))
    with pytest.raises(ConfigError, match="images"):
        PointingConfig(images=0)


def test_another_image_is_refused(tiny_val_targets: Path, scenes_root: Path, loads: list[str], tmp_path: Path) -> None:
    root = Path(shutil.copytree(scenes_root, tmp_path / "scenes"))
    store = TargetStore.open(tiny_val_targets, data_root=root)
    dataset = read_dataset("scenes", root, "val")
    word = grounded_words(store, dataset)[0]
    (root / store.index.paths[word.position]).write_bytes((root / store.index.paths[word.position - 1]).read_bytes())
    with pytest.raises(CorruptTargetsError, match="is not the image"):
        pointing_by_kind(store, dataset, PointingConfig(kinds=("attention",), device="cpu"))


def test_any_data_set_with_masks_will_do(
    scenes_root: Path, tiny_teacher: CocaTeacher, loads: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "coco"
    shutil.copytree(scenes_root / "val", root / "val2017")
    (root / "annotations").mkdir()
    for name in ("captions", "instances"):
        shutil.copy(scenes_root / f"annotations/{name}_val.json", root / f"annotations/{name}_val2017.json")
    config = extraction.ExtractConfig(
        dataset="coco", data_root=root, split="val", teacher="t", kind="gradcam", layers=2, words=6, device="cpu"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "load_teacher", lambda name, **_: tiny_teacher)
        extraction.extract(config, tmp_path / "targets")
    store = TargetStore.open(tmp_path / "targets")
    dataset = read_dataset("coco", root, "val")
    rows = pointing_by_kind(store, dataset, PointingConfig(kinds=("relevance", "gradcam"), device="cpu"))
    assert [(row.source, row.kind) for row in rows] == [
        *[("cache", "gradcam")] * 2,
        ("live", "relevance"),
        *[("live", "gradcam")] * 2,
    ]
    for cached, live in zip(rows[:2], rows[3:], strict=True):
        assert cached.layer == live.layer
        assert live.grounding.mass_in_mask == pytest.approx(cached.grounding.mass_in_mask, abs=2e-3)


def test_classes_of_several_words_and_several_prompts_are_read_as_they_were(
    scenes_root: Path, tiny_teacher: CocaTeacher, loads: list[str], tmp_path: Path
) -> None:
    """The same texts as in the extraction: phrases are one word, and a map is the mean over the prompts."""
    root = Path(shutil.copytree(scenes_root, tmp_path / "scenes"))
    for file in (root / "annotations").glob("instances_*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        for category in content["categories"]:
            category["name"] = f"painted {category['name']}"
        file.write_text(json.dumps(content), encoding="utf-8")
    config = extraction.ExtractConfig(
        dataset="scenes",
        data_root=root,
        split="val",
        teacher="t",
        kind="gradcam_pooler",
        text="prompts",
        prompts=("a photo of a {}.", "there is a {}"),
        captions="all",
        words=6,
        device="cpu",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "load_teacher", lambda name, **_: tiny_teacher)
        extraction.extract(config, tmp_path / "targets")
    store, dataset = TargetStore.open(tmp_path / "targets"), read_dataset("scenes", root, "val")
    assert all(word.startswith("painted ") for word in store.vocabulary.words)
    cached, live = pointing_by_kind(store, dataset, PointingConfig(kinds=("gradcam_pooler",), device="cpu"))
    assert live.grounding.count > 0
    assert live.grounding.mass_in_mask == pytest.approx(cached.grounding.mass_in_mask, abs=2e-3)
    assert live.grounding.pointing == pytest.approx(cached.grounding.pointing, abs=1.5 / live.grounding.count)


def test_planted_artefacts_are_counted_over_batches(
    tiny_val_targets: Path, loads: list[str], tiny_teacher: CocaTeacher
) -> None:
    store = TargetStore.open(tiny_val_targets)

    def plant(_block: object, _args: object, tokens: torch.Tensor) -> torch.Tensor:
        planted = tokens.clone()
        planted[:, -1, 0] = 1e3  # the last patch stores something in one channel
        return planted

    handle = tiny_teacher.blocks[-1].register_forward_hook(plant)
    try:
        first, last = artefacts_of_cache(store, 5, PointingConfig(batch_size=2, device="cpu"))
    finally:
        handle.remove()
    assert (first.images, last.images) == (5, 5)
    assert last.with_artefacts == 5
    assert last.share >= 1 / (tiny_teacher.grid[0] * tiny_teacher.grid[1])
    assert last.largest_norm > first.largest_norm

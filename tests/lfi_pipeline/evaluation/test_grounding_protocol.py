"""Protocol grounding: whose maps are scored, on which words, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.evaluation import (
    EvaluationConfig,
    evaluate_runs,
    grounded_words,
    grounding_protocol,
    teacher_grounding,
)
from lfi_pipeline.evaluation.config import GroundingConfig
from lfi_pipeline.evaluation.grounding import THRESHOLDS, jensen_shannon, score, threshold_ious
from lfi_pipeline.evaluation.maps import class_maps, student_maps
from lfi_pipeline.evaluation.protocols import ProtocolResult, load, read_results
from lfi_pipeline.targets import TargetSpec, TargetStore, decode_maps
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.learner import LoadedRun, load_run

SHARES = ("pointing", "mass_in_mask", "area")


def grounding_of(run: Path, targets: Path, gallery: int = 12) -> ProtocolResult:
    configs = {"grounding": GroundingConfig(targets=targets, gallery=gallery)}
    return evaluate_runs([run], configs, EvaluationConfig(device="cpu"))[run]["grounding"]


def test_an_lfi_run_and_its_teacher(run_of: dict[str, Path], tiny_val_targets: Path, scenes_root: Path) -> None:
    found = grounding_of(run_of["lfi"], tiny_val_targets)
    store = TargetStore.open(tiny_val_targets)
    words = grounded_words(store, read_dataset("scenes", scenes_root, "val"))
    *_, teacher = teacher_grounding(store, words)
    assert found.scores["teacher_pointing"] == found.details["teacher"]["pointing"] == teacher.pointing
    assert found.scores["teacher_mass_in_mask"] == teacher.mass_in_mask
    assert 0 < found.details["area"] == found.details["teacher"]["area"] < 0.5
    assert [tap["index"] for tap in found.details["taps"]] == [0, 1, 2]
    for tap in found.details["taps"]:
        assert all(0 <= tap[name] <= 1 for name in SHARES)
        assert tap["count"] == len(words)
        assert tap["area"] == found.details["area"]
    assert {name: found.scores[name] for name in SHARES[:2]} == {
        name: found.details["taps"][-1][name] for name in SHARES[:2]
    }
    assert found.settings == {
        "dataset": "scenes",
        "split": "val",
        "weights": "last",
        "targets": store.spec.fingerprint,
    }


def test_the_students_maps_are_those_of_its_queries(
    run_of: dict[str, Path], tiny_val_targets: Path, scenes_root: Path
) -> None:
    """Recomputed one sample at a time, straight from the student."""
    run = run_of["lfi"]
    found = grounding_of(run, tiny_val_targets, 0)
    student, store = load_run(run, device="cpu").student, TargetStore.open(tiny_val_targets)
    dataset = read_dataset("scenes", scenes_root, "val")
    words, images = grounded_words(store, dataset), PlainImages(dataset, [(64, 64)])
    embeddings = torch.from_numpy(store.vocabulary.embeddings).float()
    per_tap: list[list[torch.Tensor]] = [[], [], []]
    assert student.queries is not None
    for word in words:
        ids = torch.from_numpy(store.read(word.position).words).long().clamp_min(0)
        with torch.no_grad():
            features = student(images[word.position][0][(64, 64)][None], with_taps=True)
            maps = student.queries.maps(embeddings[ids][None], features.taps)
        for tap, m in enumerate(maps):
            per_tap[tap].append(m[0, word.row].view(4, 4))
    for tap, own in zip(found.details["taps"], per_tap, strict=True):
        again = score(own, [word.mask for word in words])
        assert tap["pointing"] == pytest.approx(again.pointing, abs=0.02)  # a tie may fall the other way in a batch
        assert tap["mass_in_mask"] == pytest.approx(again.mass_in_mask, abs=1e-5)


def test_a_run_without_queries_has_no_taps(run_of: dict[str, Path], tiny_val_targets: Path) -> None:
    found = grounding_of(run_of["none"], tiny_val_targets)
    assert found.details["taps"] == []
    assert found.details["teacher"]["count"] > 0
    assert not {"pointing", "mass_in_mask", "iou", "tap_divergence"} & set(found.scores)
    assert set(found.scores) >= {"teacher_pointing", "teacher_mass_in_mask", "teacher_iou"}


def test_overlap_and_divergence_are_those_of_the_maps_at_each_depth(
    run_of: dict[str, Path], tiny_val_targets: Path, scenes_root: Path
) -> None:
    found = grounding_of(run_of["lfi"], tiny_val_targets, 0)
    student, store = load_run(run_of["lfi"], device="cpu").student, TargetStore.open(tiny_val_targets)
    dataset = read_dataset("scenes", scenes_root, "val")
    words = grounded_words(store, dataset)
    masks = torch.stack([word.mask for word in words])
    maps = dict(student_maps(student, store, dataset, sorted({word.position for word in words})))
    per_tap = [torch.stack([maps[word.position][tap][word.row] for word in words]) for tap in range(3)]
    for tap, own in zip(found.details["taps"], per_tap, strict=True):
        curve = threshold_ious(own, masks).double().mean(0)
        assert tap["iou"] == pytest.approx(float(curve.max()))
        assert float(curve[THRESHOLDS.index(tap["threshold"])]) == pytest.approx(tap["iou"])
    divergences = [float(jensen_shannon(a, b).mean()) for a, b in itertools.pairwise(per_tap)]
    assert [tap["divergence"] for tap in found.details["taps"]] == [None, *map(pytest.approx, divergences)]
    assert found.scores["tap_divergence"] == pytest.approx(np.mean(divergences))
    assert found.scores["iou"] == found.details["taps"][-1]["iou"]
    *_, layer = found.details["teacher_layers"]
    cached = []
    for word in words:
        read = store.read_many([word.position])
        decoded = decode_maps(torch.from_numpy(read.maps), torch.from_numpy(read.scale), store.spec.codec.name)
        cached.append(decoded[0, -1, word.row])
    best = float(threshold_ious(torch.stack(cached), masks).mean(0).max())
    assert layer["iou"] == found.scores["teacher_iou"] == pytest.approx(best)
    assert found.details["teacher"].items() <= layer.items()


@pytest.mark.parametrize("name", ["none", "lfi"])
def test_every_student_with_a_head_is_scored_by_its_own_logits(
    run_of: dict[str, Path], tiny_val_targets: Path, scenes_root: Path, name: str
) -> None:
    """Against one pair at a time; images are read here by their keys, and classes named by the words."""
    found = grounding_of(run_of[name], tiny_val_targets, 0)
    student, store = load_run(run_of[name], device="cpu").student, TargetStore.open(tiny_val_targets)
    dataset = read_dataset("scenes", scenes_root, "val")
    images, words = PlainImages(dataset, [(64, 64)]), grounded_words(store, dataset)
    place = {sample.key: i for i, sample in enumerate(dataset.samples)}
    maps = []
    for word in words:
        image = images[place[store.index.keys[word.position]]][0][(64, 64)]
        text = store.vocabulary.words[store.read(word.position).words[word.row]]
        label = torch.tensor([dataset.classes.index(text)])
        maps.append(class_maps(student, image[None], torch.tensor([0]), label)[0])
    again = score(maps, [word.mask for word in words])
    assert found.scores["cam_pointing"] == pytest.approx(again.pointing, abs=0.02)
    assert found.scores["cam_mass_in_mask"] == pytest.approx(again.mass_in_mask, abs=1e-4)
    assert found.details["cam"]["pointing"] == found.scores["cam_pointing"]
    assert found.details["cam"]["empty"] == np.mean([not each.any() for each in maps])
    assert found.details["cam_missing"] is None


def test_a_student_without_a_head_has_no_class_maps_and_says_so(
    run_of: dict[str, Path], tiny_val_targets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def headless(*args: Any) -> LoadedRun:
        loaded = load(*args)
        loaded.student.head = None
        return loaded

    monkeypatch.setattr(grounding_protocol, "load", headless)
    found = grounding_of(run_of["lfi"], tiny_val_targets)
    assert not {"cam_pointing", "cam_mass_in_mask"} & set(found.scores)
    assert found.details["cam"] is None
    assert "a student with a head" in found.details["cam_missing"]
    assert "pointing" in found.scores
    assert not [key for key in load_file(run_of["lfi"] / "gallery.safetensors") if key.startswith("cam")]


def test_the_gallery_may_be_left_out(run_of: dict[str, Path], tiny_val_targets: Path) -> None:
    grounding_of(run_of["lfi"], tiny_val_targets, 0)
    assert not (run_of["lfi"] / "gallery.json").exists()
    with pytest.raises(ConfigError, match="gallery must be 0 or more, got -1"):
        grounding_of(run_of["lfi"], tiny_val_targets, -1)


@pytest.fixture
def with_spec(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Callable[[TargetSpec], TargetSpec]], None]:
    """Make the store at a path answer with a changed spec."""

    def apply(path: Path, change: Callable[[TargetSpec], TargetSpec]) -> None:
        plain = TargetStore.open.__func__  # type: ignore[attr-defined]

        def opened(cls: Any, given: Path, **options: Any) -> TargetStore:
            store: TargetStore = plain(cls, given, **options)
            if Path(given) == path:
                store._spec = change(store._spec)
            return store

        monkeypatch.setattr(TargetStore, "open", classmethod(opened))

    return apply


def test_targets_of_another_teacher_are_refused_by_name(
    run_of: dict[str, Path], tiny_val_targets: Path, with_spec: Callable[..., None]
) -> None:
    with_spec(tiny_val_targets, lambda spec: replace(spec, teacher=replace(spec.teacher, name="other-coca")))
    with pytest.raises(ConfigError, match=r"the teacher of the training targets.*other-coca.*tiny-coca"):
        grounding_of(run_of["lfi"], tiny_val_targets)
    assert not read_results(run_of["lfi"])


def test_targets_of_other_classes_are_refused(
    run_of: dict[str, Path], tiny_val_targets: Path, with_spec: Callable[..., None]
) -> None:
    with_spec(tiny_val_targets, lambda spec: replace(spec, dataset=replace(spec.dataset, classes=("cat",))))
    with pytest.raises(ConfigError, match="the classes of the training targets"):
        grounding_of(run_of["lfi"], tiny_val_targets)


def test_the_training_cache_cannot_stand_in_for_the_validation_cache(
    run_of: dict[str, Path], tiny_targets: Path
) -> None:
    with pytest.raises(DatasetError, match="split val; it holds scenes, split train"):
        grounding_of(run_of["lfi"], tiny_targets)

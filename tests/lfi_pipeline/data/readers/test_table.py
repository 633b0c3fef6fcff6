"""Images that a table lists, Waterbirds and CelebA among them, and tables that are none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lfi_pipeline.core.errors import DatasetError, UnknownNameError
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.data.readers import table
from tests.lfi_pipeline.data.layouts import make_celeba, make_waterbirds, write

FOLDER = "waterbird_complete95_forest2water2"


def groups(dataset: Dataset) -> Counter[tuple[str, str]]:
    return Counter((dataset.classes[sample.labels[0]], sample.domain) for sample in dataset.samples)


@pytest.mark.parametrize("folder", [FOLDER, "."])
def test_waterbirds_as_it_unpacks(tmp_path: Path, folder: str) -> None:
    make_waterbirds(tmp_path, folder=folder)
    for number, split in enumerate(("train", "val", "test")):
        dataset = read_dataset("waterbirds", tmp_path, split)
        assert dataset.classes == ("landbird", "waterbird")
        assert groups(dataset) == {(c, d): 2 for c in dataset.classes for d in ("land", "water")}
        assert all((tmp_path / sample.path).is_file() for sample in dataset.samples)
        assert all(sample.key.split("/")[1].startswith(f"{number}_") for sample in dataset.samples)
    assert dataset.samples[0].key == "000.Sparrow/2_0_0"
    assert dataset.samples[0].path == ("" if folder == "." else f"{FOLDER}/") + "000.Sparrow/2_0_0.jpg"
    with pytest.raises(UnknownNameError, match="split of waterbirds 'all'"):
        read_dataset("waterbirds", tmp_path, "all")


@pytest.mark.parametrize("published", [True, False])
def test_celeba_in_both_of_its_forms(tmp_path: Path, published: bool) -> None:
    make_celeba(tmp_path, published=published)
    train, val, test = (read_dataset("celeba", tmp_path, split) for split in ("train", "val", "test"))
    assert train.classes == val.classes == ("not blond", "blond hair")
    assert [sample.key for sample in train.samples] == [f"{i + 1:06d}" for i in range(10)]
    assert [train.classes[s.labels[0]] for s in train.samples] == ["blond hair", "not blond"] * 5
    assert [s.domain for s in train.samples] == (["male"] * 2 + ["female"] * 2) * 2 + ["male"] * 2
    assert [s.key for s in (*val.samples, *test.samples)] == ["000011", "000012"]
    assert groups(test) == {("not blond", "female"): 1}
    assert (tmp_path / test.samples[0].path).is_file()


OWN = """
name = "own"
layout = "table"
[table]
path = "file"
label = "kind"
domain = "place"
split = "part"
[splits.train]
table = "list.csv"
value = "a"
[splits.val]
table = "list.csv"
value = "b"
[splits.all]
table = "list.csv"
"""
ROWS = 'part,file,kind,place,note\na,1.jpg,owl,wood,"x, y"\nb,sub/2.png,cat,,\na,3.jpg,cat,house,\n'


def own(root: Path, rows: str | bytes = ROWS, manifest: str = OWN) -> Path:
    for name in ("1.jpg", "sub/2.png", "3.jpg"):
        write(root / name)
    write(root / "list.csv", rows)
    return write(root / "own.toml", manifest)


def test_a_table_of_ones_own_without_names_for_its_values(tmp_path: Path) -> None:
    path = own(tmp_path)
    train, val, whole = (read_dataset(path, tmp_path, split) for split in ("train", "val", "all"))
    assert train.classes == val.classes == ("cat", "owl")  # of all rows, so that labels agree between splits
    assert [(s.path, s.labels, s.domain) for s in whole.samples] == [
        ("1.jpg", (1,), "wood"),
        ("sub/2.png", (0,), ""),
        ("3.jpg", (0,), "house"),
    ]
    assert [s.key for s in train.samples] == ["1", "3"]
    assert [s.key for s in val.samples] == ["sub/2"]


@pytest.mark.parametrize(
    ("name", "separator", "rows"),
    [
        ("list.csv", None, b"\xef\xbb\xbf" + ROWS.replace("\n", "\r\n").encode()),
        ("list.tsv", None, ROWS.replace('"x, y"', "x").replace(",", "\t").encode()),
        ("list.dat", ";", ROWS.replace('"x, y"', "x").replace(",", " ; ").encode()),
        ("list.txt", None, b"part  file kind\tplace\na 1.jpg owl wood\nb sub/2.png cat none \n\na  3.jpg cat house"),
        ("list.txt", None, b"3\npart kind place\n1.jpg a owl wood\nsub/2.png b cat none\n3.jpg a cat house\n"),
    ],
)
def test_however_cells_are_apart(tmp_path: Path, name: str, separator: str | None, rows: bytes) -> None:
    text = OWN.replace("list.csv", name)
    own(tmp_path)
    path = write(
        tmp_path / "own.toml",
        text if separator is None else text.replace("[table]", f'[table]\nseparator = "{separator}"'),
    )
    write(tmp_path / name, rows)
    dataset = read_dataset(path, tmp_path, "train")
    assert [(s.path, dataset.classes[s.labels[0]], s.domain) for s in dataset.samples] == [
        ("1.jpg", "owl", "wood"),
        ("3.jpg", "cat", "house"),
    ]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            ROWS.replace("kind", "sort"),
            r"list\.csv must have one column 'kind', got 0; its columns: 'part', 'file', 'sort'",
        ),
        (ROWS.replace("note", "kind"), r"must have one column 'kind', got 2"),
        (
            ROWS.replace("a,", "c,"),
            r"column 'part' must hold 'a', the value of split 'train', in some row; its values: 'c', 'b'",
        ),
        (ROWS.replace("3.jpg", "1.jpg"), r"must list each image once; more than once: '1\.jpg'"),
        (ROWS.replace("3.jpg", "4.jpg"), r"of 2, 1 are not in .*: '4\.jpg'\. There is: 1\.jpg, 3\.jpg, list\.csv"),
        (ROWS.replace("3.jpg", "../3.jpg"), r"must stay below .*, and '\.\./3\.jpg' has '\.\.' in it"),
        (ROWS.replace("3.jpg", "/etc/3.jpg"), r"'/etc/3\.jpg' is absolute"),
        (ROWS.replace("3.jpg", ""), r"and '' is empty"),
        (ROWS.replace("3.jpg", "list.csv"), r"1 are not in .*'list\.csv'"),
        (ROWS.replace("3.jpg,cat", "3.jpg,"), r"column 'kind': each image must have a label, got an empty cell"),
        (ROWS.replace("owl", "\x1b[2J"), r"column 'kind' must hold printable text, got '\\x1b\[2J'"),
        (ROWS.replace("house", "h\x07"), r"column 'place' must hold printable text"),
        (ROWS.replace("owl", "o" * 5000), r"column 'kind': a cell must have at most 4096 characters, got 5000"),
        (ROWS.replace("owl", "o" * (3 << 20)), r"must be a table in UTF-8, cells apart by ',': "),
        (ROWS + "a,b\n", r"must be a table in UTF-8.*Expected 5 columns, got 2"),
        (ROWS.encode().replace(b"owl", b"\xff\xfe"), r"must be a table in UTF-8.*invalid UTF8 data"),
        (b"\xff\xfe,\n", r"must be a table in UTF-8"),
        (b"", r"must be a table in UTF-8.*Empty CSV file"),
        (ROWS.splitlines()[0], r"list\.csv must list an image, got names of columns alone"),
    ],
)
def test_a_hostile_table_is_one_clear_error(tmp_path: Path, rows: str | bytes, told: str) -> None:
    with pytest.raises(DatasetError, match=told) as raised:
        read_dataset(own(tmp_path, rows), tmp_path, "train")
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "[splits.train]",
            '[table.classes]\n"cat" = "a cat"\n[splits.train]',
            r"column 'kind' must hold values that the manifest names \('cat'\), got 'owl'",
        ),
        (
            "[splits.train]",
            '[table.domains]\n"wood" = "w"\n[splits.train]',
            r"column 'place' must hold values .*, got 'house'",
        ),
        ('split = "part"\n', "", r"Manifest own: a value or a partition needs the option split"),
        ('split = "part"', 'split = "part"\npartition = "parts"', r"must hold parts\.csv or parts\.tsv or parts\.txt"),
        ('split = "part"', 'split = "part"\nimages = ["pictures", "more"]', r"the folder of images pictures or more"),
        ('split = "part"', 'split = "part"\nfolders = ["x", "y"]', r"must hold list\.csv \(in one of x, y\)"),
    ],
)
def test_what_a_manifest_says_and_the_table_does_not(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert OWN.count(old) == 1
    with pytest.raises(DatasetError, match=told):
        read_dataset(own(tmp_path, manifest=OWN.replace(old, new)), tmp_path, "train")


def test_names_of_values_are_the_classes_in_their_order(tmp_path: Path) -> None:
    classes = '[table.classes]\n"owl" = "bird"\n"cat" = "beast"\n"elk" = "beast"\n'
    names = f'{classes}[table.domains]\n"" = "nowhere"\n"wood" = "out"\n"house" = "in"\n'
    path = own(tmp_path, manifest=OWN.replace("[splits.train]", f"{names}[splits.train]"))
    dataset = read_dataset(path, tmp_path, "all")
    assert dataset.classes == ("bird", "beast")
    assert [(s.labels, s.domain) for s in dataset.samples] == [((0,), "out"), ((1,), "nowhere"), ((1,), "in")]


def test_a_second_file_tells_the_split_whatever_its_order(tmp_path: Path) -> None:
    path = own(tmp_path, manifest=OWN.replace('split = "part"', 'split = "of"\npartition = "parts"'))
    write(tmp_path / "parts.csv", "of,file\nb,9.jpg\na,3.jpg\nb,1.jpg\na,sub/2.png\n")
    assert [s.path for s in read_dataset(path, tmp_path, "train").samples] == ["sub/2.png", "3.jpg"]
    assert [s.path for s in read_dataset(path, tmp_path, "val").samples] == ["1.jpg"]
    write(tmp_path / "parts.csv", "of,file\na,3.jpg\n")
    with pytest.raises(
        DatasetError, match=r"parts\.csv must tell the split of each image of .*it lacks 2: '1\.jpg', 'sub/2"
    ):
        read_dataset(path, tmp_path, "train")
    write(tmp_path / "parts.csv", "of,file\na,3.jpg\nb,3.jpg\n")
    with pytest.raises(DatasetError, match=r"parts\.csv must list each image once"):
        read_dataset(path, tmp_path, "train")


def test_a_table_that_is_too_large_or_of_too_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own(tmp_path)
    monkeypatch.setattr(table, "MOST_CLASSES", 1)
    with pytest.raises(DatasetError, match="at most 1 classes, got 2"):
        read_dataset(path, tmp_path, "train")
    monkeypatch.setattr(table, "_LARGEST", 20)
    with pytest.raises(DatasetError, match="of at most 20 bytes"):
        read_dataset(path, tmp_path, "train")


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    path = own(root)
    (root / "3.jpg").unlink()
    (root / "3.jpg").symlink_to(write(tmp_path / "private.jpg"))
    with pytest.raises(DatasetError, match=r"Images of own, train: 3\.jpg: must lie in"):
        read_dataset(path, root, "train")

"""Small copies of the COCO 2017 layout: same files, same keys, same habits (ids unordered, gaps in the categories)."""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.objects import count_masks, count_objects

HEIGHT, WIDTH = 12, 20
IMAGE_IDS = (391895, 139, 522418)  # as in the real files, not ascending
RECTANGLE = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
RECTANGLE[2:8, 5:15] = 1


def _uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths in column order, beginning with zeros, as crowds have them."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": runs if flat[0] == 0 else [0, *runs]}


def _compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode("ascii")}


def _images() -> list[dict[str, Any]]:
    return [
        {
            "license": 3,
            "file_name": f"{image_id:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{image_id:012d}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
            "id": image_id,
        }
        for image_id in IMAGE_IDS
    ]


def _object(number: int, image_id: int, category: int, segmentation: object, crowd: int = 0) -> dict[str, Any]:
    return {
        "segmentation": segmentation,
        "area": 60.0,
        "iscrowd": crowd,
        "image_id": image_id,
        "bbox": [5.0, 2.0, 10.0, 6.0],
        "category_id": category,
        "id": number,
    }


def _contents() -> dict[str, dict[str, Any]]:
    polygon = [5, 2, 15, 2, 15, 8, 5, 8]
    common = {"info": {"description": "COCO 2017 Dataset", "year": 2017}, "licenses": [{"id": 3, "name": "CC"}]}
    return {
        "captions": common
        | {
            "images": _images(),
            "annotations": [
                {"image_id": 522418, "id": 812, "caption": "A dog and a cat."},
                {"image_id": 139, "id": 40, "caption": "Second of 139 "},
                {"image_id": 391895, "id": 770337, "caption": "A man with a red helmet."},
                {"image_id": 139, "id": 7, "caption": "First of 139"},
            ],
        },
        "instances": common
        | {
            "images": _images(),
            "annotations": [
                _object(1, 391895, 90, [polygon]),
                _object(2, 391895, 1, [[5, 2, 10, 2, 10, 8, 5, 8], [10, 2, 15, 2, 15, 8, 10, 8]]),
                _object(3, 139, 18, _compressed(RECTANGLE)),
                _object(4, 522418, 18, _uncompressed(RECTANGLE)),
                _object(5, 522418, 1, _uncompressed(RECTANGLE), crowd=1),
                _object(6, 522418, 18, [polygon]),
            ],
            "categories": [
                {"supercategory": "indoor", "id": 90, "name": "toothbrush"},
                {"supercategory": "person", "id": 1, "name": "person"},
                {"supercategory": "animal", "id": 18, "name": "dog"},
            ],
        },
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root; write_coco fills it."""
    (tmp_path / "train2017").mkdir()
    for image_id in IMAGE_IDS:
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"train2017/{image_id:012d}.jpg")
    (tmp_path / "annotations").mkdir()
    _write(tmp_path, _contents())
    return tmp_path


def _write(root: Path, contents: dict[str, Any]) -> None:
    for kind, content in contents.items():
        (root / f"annotations/{kind}_train2017.json").write_text(json.dumps(content), encoding="utf-8")


def test_samples_come_in_order_of_image_id(root: Path) -> None:
    dataset = read_dataset("coco", root, "train")
    assert [sample.key for sample in dataset.samples] == ["000000000139", "000000391895", "000000522418"]
    assert dataset.samples[0].path == "train2017/000000000139.jpg"
    assert (dataset.root / dataset.samples[0].path).is_file()
    assert (dataset.samples[0].height, dataset.samples[0].width) == (HEIGHT, WIDTH)
    assert dataset.samples[0].domain == ""
    assert (dataset.name, dataset.split, len(dataset)) == ("coco", "train", 3)


def test_captions_come_in_order_of_their_id(root: Path) -> None:
    captions = {sample.key: sample.captions for sample in read_dataset("coco", root, "train").samples}
    assert captions["000000000139"] == ("First of 139", "Second of 139 ")
    assert captions["000000391895"] == ("A man with a red helmet.",)


def test_labels_index_the_categories_by_id_and_leave_crowds_out(root: Path) -> None:
    dataset = read_dataset("coco", root, "train")
    assert dataset.classes == ("person", "dog", "toothbrush")
    assert {sample.key: sample.labels for sample in dataset.samples} == {
        "000000000139": (1,),
        "000000391895": (0, 2),
        "000000522418": (1,),  # the person of this image is a crowd
    }
    assert [instance.label for instance in dataset.instances["000000522418"]] == [1, 1]


def test_polygons_and_both_run_length_forms_give_the_same_mask(root: Path) -> None:
    dataset = read_dataset("coco", root, "train")
    instances = [instance for key in sorted(dataset.instances) for instance in dataset.instances[key]]
    assert len(instances) == 5
    for instance in instances:
        mask = instance.mask(HEIGHT, WIDTH)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, RECTANGLE.astype(bool))
        assert instance.bbox_xywh == (5.0, 2.0, 10.0, 6.0)


def test_an_image_without_objects_or_captions_is_still_a_sample(root: Path) -> None:
    contents = _contents()
    for content in contents.values():
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 139]
    _write(root, contents)
    sample = read_dataset("coco", root, "train").samples[0]
    assert (sample.key, sample.captions, sample.labels) == ("000000000139", (), ())


def test_missing_root_says_how_to_obtain_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent must be a directory.*annotations_trainval2017"):
        read_dataset("coco", tmp_path / "absent", "train")


def test_empty_root_shows_what_is_expected_and_that_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"train2017, annotations/captions_train2017\.json.*found there: nothing"):
        read_dataset("coco", tmp_path, "train")


def test_a_missing_file_shows_expected_missing_and_found(root: Path) -> None:
    (root / "annotations/instances_train2017.json").unlink()
    message = (
        r"must hold train2017, .*captions_train2017.*; missing: annotations/instances_train2017\.json; "
        r"found there: annotations, train2017\."
    )
    with pytest.raises(DatasetError, match=message):
        read_dataset("coco", root, "train")


def test_an_empty_image_folder_is_refused(root: Path) -> None:
    for image in (root / "train2017").iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match="train2017 is empty"):
        read_dataset("coco", root, "train")


def _other_name(contents: dict[str, Any]) -> None:
    contents["captions"]["images"] = copy.deepcopy(contents["captions"]["images"])
    contents["captions"]["images"][1]["file_name"] = "another.jpg"


def _without_an_image(contents: dict[str, Any]) -> None:
    contents["captions"]["images"] = contents["captions"]["images"][1:]


def _other_ids(contents: dict[str, Any]) -> None:
    contents["captions"]["images"] = [{"id": 11, "file_name": "a.jpg"}, {"id": 12, "file_name": "b.jpg"}]


def _stray_caption(contents: dict[str, Any]) -> None:
    contents["captions"]["annotations"].append({"image_id": 4711, "id": 1, "caption": "Whose?"})


def _twice(contents: dict[str, Any]) -> None:
    for content in contents.values():
        content["images"][2]["file_name"] = content["images"][0]["file_name"]


def _same_id(contents: dict[str, Any]) -> None:
    contents["instances"]["images"].append(contents["instances"]["images"][0] | {"file_name": "again.jpg"})


def _unlisted_category(contents: dict[str, Any]) -> None:
    contents["instances"]["annotations"][0]["category_id"] = 2


def _lacking(kind: str, name: str, key: str) -> Callable[[dict[str, Any]], None]:
    def change(contents: dict[str, Any]) -> None:
        del contents[kind][name][0][key]

    return change


def _without(kind: str, name: str) -> Callable[[dict[str, Any]], None]:
    def change(contents: dict[str, Any]) -> None:
        del contents[kind][name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_other_name, r"id 139 is another\.jpg in the first and 000000000139\.jpg", id="other file name"),
        pytest.param(_other_ids, r"5 are in one of them alone", id="other images"),
        pytest.param(_without("captions", "annotations"), r"captions_train.*no list 'annotations'", id="no captions"),
        pytest.param(_without("instances", "images"), "instances_train.*no list 'images'", id="no images"),
        pytest.param(_without("instances", "categories"), "no list 'categories'", id="no categories"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    root: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    contents = _contents()
    change(contents)
    _write(root, contents)
    with pytest.raises(DatasetError, match=message):
        read_dataset("coco", root, "train")


@pytest.mark.parametrize(
    ("change", "note", "left"),
    [
        pytest.param(_without_an_image, "1 images are in one of .* alone", (3, 4, 5), id="image in one file alone"),
        pytest.param(_stray_caption, r"1 captions left out, of an image that is not listed", (3, 4, 5), id="caption"),
        pytest.param(_twice, "images left out, whose file an earlier one names", (2, 3, 3), id="file named twice"),
        pytest.param(_same_id, "images left out, whose id is that of another", (3, 4, 5), id="image id twice"),
        pytest.param(_unlisted_category, "1 objects left out, of a category", (3, 4, 4), id="unlisted category"),
        pytest.param(_lacking("instances", "categories", "name"), "categories left out", (3, 4, 4), id="no name"),
        pytest.param(_lacking("captions", "annotations", "caption"), "captions left out", (3, 3, 5), id="no caption"),
        pytest.param(_lacking("captions", "annotations", "id"), "", (3, 4, 5), id="no caption id"),
        pytest.param(_lacking("instances", "images", "height"), "segmentation does not fit", (3, 4, 5), id="no height"),
        pytest.param(_lacking("instances", "annotations", "bbox"), "", (3, 4, 5), id="no box"),
        pytest.param(_lacking("instances", "annotations", "segmentation"), "", (3, 4, 5), id="no mask"),
        pytest.param(_lacking("instances", "annotations", "image_id"), "objects left out", (3, 4, 4), id="no image id"),
        pytest.param(_lacking("instances", "annotations", "category_id"), "objects left out", (3, 4, 4), id="no class"),
    ],
)
def test_one_bad_record_costs_nothing_but_itself(
    root: Path, change: Callable[[dict[str, Any]], None], note: str, left: tuple[int, int, int]
) -> None:
    contents = _contents()
    change(contents)
    _write(root, contents)
    dataset = read_dataset("coco", root, "train")
    captions = sum(len(sample.captions) for sample in dataset.samples)
    assert (len(dataset), captions, count_objects(dataset.instances)) == left
    if not note:
        assert dataset.notes == ()
        read_dataset("coco", root, "train", strict=True)
        return
    assert any(re.search(note, line) for line in dataset.notes)
    with pytest.raises(DatasetError, match=note):
        read_dataset("coco", root, "train", strict=True)


def test_ids_sizes_and_names_as_other_tools_write_them(root: Path) -> None:
    plain = read_dataset("coco", root, "train")
    contents = _contents()
    for content in contents.values():
        for image in content["images"]:
            image |= {"id": float(image["id"]), "height": float(HEIGHT), "file_name": ".\\" + image["file_name"]}
        for annotation in content["annotations"]:
            annotation["image_id"] = str(annotation["image_id"])
    for annotation in contents["instances"]["annotations"]:
        annotation["category_id"] = str(annotation["category_id"])
    contents["captions"]["annotations"].append({"image_id": 139, "id": 999, "caption": None})
    for kind, content in contents.items():
        path = root / f"annotations/{kind}_train2017.json"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
        if kind == "instances":
            path.write_bytes(gzip.compress(path.read_bytes()))
    found = read_dataset("coco", root, "train")
    assert found.samples == plain.samples
    assert dict(found.instances) == dict(plain.instances)
    assert found.notes == ("captions_train2017.json: 1 captions left out, which are missing or no text (id 999)",)


def test_ids_may_be_any_text(root: Path) -> None:
    contents = _contents()
    for content in contents.values():
        for image in content["images"]:
            image["id"] = f"image {image['id']}"
        for annotation in content["annotations"]:
            annotation["image_id"] = f"image {annotation['image_id']}"
    _write(root, contents)
    dataset = read_dataset("coco", root, "train")
    assert {sample.key: sample.captions for sample in dataset.samples}["000000391895"] == ("A man with a red helmet.",)
    assert {sample.key: sample.labels for sample in dataset.samples}["000000391895"] == (0, 2)


def test_files_of_one_name_in_two_folders_keep_their_path(root: Path) -> None:
    contents = _contents()
    for content in contents.values():
        content["images"][0]["file_name"] = "site1/0001.jpg"
        content["images"][1]["file_name"] = "site2/0001.jpg"
    _write(root, contents)
    assert [sample.key for sample in read_dataset("coco", root, "train").samples] == [
        "site2/0001",
        "site1/0001",
        "000000522418",
    ]


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1e6, 1e6, 1e300, 5, 9e15, 1e9, 3, 1e308]],
        [[8, 8, 9, 9], [], [1]],
        [[8, 8, 9, 9, 8]],
        [["8", 8, 9, 9, 8, 9]],
        [[float("nan"), 8, 9, 9, 8, 9]],
        [[True, 8, 9, 9, 8, 9]],
        [8, 8, 9, 9, 8, 9],
        "polygon",
        {"counts": [10, 99999999], "size": [HEIGHT, WIDTH]},
        {"counts": [10, HEIGHT * WIDTH - 11], "size": [HEIGHT, WIDTH]},
        {"counts": [-10, HEIGHT * WIDTH + 10], "size": [HEIGHT, WIDTH]},
        {"counts": [10, 54], "size": [8, 8]},
        {"counts": "0123", "size": [HEIGHT, WIDTH]},
        {"counts": "~~~~", "size": [HEIGHT, WIDTH]},
        {"counts": "ooo", "size": [HEIGHT, WIDTH]},
        {"counts": [HEIGHT * WIDTH]},
        {"size": [1 << 30, 1 << 30], "counts": [1 << 60]},
    ],
)
def test_what_is_no_outline_is_left_out_and_named(root: Path, segmentation: object) -> None:
    contents = _contents()
    contents["instances"]["annotations"][2]["segmentation"] = segmentation
    _write(root, contents)
    dataset = read_dataset("coco", root, "train")
    (note,) = dataset.notes
    assert re.match(r"instances_train2017\.json: 1 objects without a mask, whose segmentation .*\(id 3: it must", note)
    assert [each.segmentation for each in dataset.instances["000000000139"]] == [None]
    assert dataset.samples[0].labels == (1,)
    assert count_masks(dataset.instances) == 4


@pytest.mark.parametrize("content", [b"", b"<html>moved</html>", b'{"images": [', b"\xff\xfe\x00", b"[1, 2]", b"[]"])
def test_a_file_that_is_not_such_json_is_named(root: Path, content: bytes) -> None:
    (root / "annotations/captions_train2017.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"captions_train2017\.json must be"):
        read_dataset("coco", root, "train")


def test_records_that_are_not_objects_are_left_out(root: Path) -> None:
    contents = _contents()
    contents["instances"]["annotations"][0] = [1, 2]
    _write(root, contents)
    (note,) = read_dataset("coco", root, "train").notes
    assert note == "instances_train2017.json: 1 records left out, which are no objects ([1, 2])"


def test_the_release_of_2014_and_panoptic_files_beside_it(root: Path) -> None:
    (root / "train2017").rename(root / "train2014")
    for kind in ("captions", "instances"):
        (root / f"annotations/{kind}_train2017.json").rename(root / f"annotations/{kind}_train2014.json")
    (root / "annotations/panoptic_train2014.json").write_text("not even JSON", encoding="utf-8")
    (root / "annotations/panoptic_train2014").mkdir()
    dataset = read_dataset("coco", root, "train2014")
    assert dataset.samples[0].path == "train2014/000000000139.jpg"
    assert dataset.prompts == ("a photo of a {}.",)
    with pytest.raises(DatasetError, match=r"missing: train2017, .*found there: annotations, train2014"):
        read_dataset("coco", root, "train")


def test_an_image_outside_of_the_root_is_refused(root: Path) -> None:
    contents = _contents()
    for content in contents.values():
        content["images"][0]["file_name"] = "../../secret.jpg"
    _write(root, contents)
    with pytest.raises(DatasetError, match=r"'train2017/\.\./\.\./secret\.jpg' must stay below the data root"):
        read_dataset("coco", root, "train")


ODD = st.sampled_from(
    [
        None,
        -1,
        10**30,
        [0, 0, 10**400, 1],
        [0, 0, 1, None],
        "1",
        "",
        True,
        [],
        {},
        [1],
        [[]],
        float("nan"),
        float("inf"),
        "\ud800",
        1.5,
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["captions", "instances"]),
    name=st.sampled_from(["images", "annotations", "categories"]),
    choice=st.integers(0, 100),
    value=ODD,
)
def test_a_value_of_any_form_is_read_or_a_dataset_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, name: str, choice: int, value: object
) -> None:
    root = tmp_path_factory.mktemp("coco")
    for folder in ("train2017", "annotations"):
        (root / folder).mkdir()
    (root / "train2017/a.jpg").write_bytes(b"x")
    contents = _contents()
    records = contents[kind].get(name, contents[kind]["images"])
    record = records[choice % len(records)]
    record[sorted(record)[choice % len(record)]] = value
    _write(root, contents)
    try:
        dataset = read_dataset("coco", root, "train")
    except DatasetError:
        return
    assert len(dataset) == 3 or dataset.notes
    assert all(isinstance(caption, str) for sample in dataset.samples for caption in sample.captions)

"""Records of a COCO listing as columns: what is kept, in which order, and what is left out and counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lfi_pipeline.data.geometry import extent_of
from lfi_pipeline.data.objects import ObjectTable
from lfi_pipeline.data.readers.coco_columns import ById, Objects, Texts, _extents, places_of, tidy
from lfi_pipeline.data.readers.coco_json import Caption, Category, Faults, Image, Object

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


@pytest.fixture
def faults() -> Faults:
    return Faults(Path("instances.json"))


class Batches(list[Any]):
    """In place of a file of record batches."""

    write_batch = list.append


def ids(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def test_an_id_of_two_images_is_of_none_and_one_told_twice_of_one(faults: Faults) -> None:
    images = ById[Image](faults, "images")
    images.add([Image(1, r".\a\b.jpg", 8, 8), Image(2, "c.jpg", 8, 8), Image(3, "d.jpg", 8, 8)])
    images.add([Image(1, "a/b.jpg", 8, 8), Image(2, "other.jpg", 8, 8), Image(2, "third.jpg", 8, 8)])
    assert images.found == {1: Image(1, "a/b.jpg", 8, 8), 3: Image(3, "d.jpg", 8, 8)}
    assert faults.lines() == ("instances.json: 2 images left out, whose id is that of another (id 2, id 2)",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b.jpg", "a/b.jpg"), (r"a\b.jpg", "a/b.jpg"), (r".\.\a.jpg", "a.jpg"), ("../a.jpg", "../a.jpg"), ("./", "")],
)
def test_names_become_posix_paths(name: str, expected: str) -> None:
    assert tidy(name) == expected


def test_places_are_those_of_a_search_one_by_one() -> None:
    known, asked = ids(-4, 2, 7, 9), ids(9, -5, 2, 3, 10, -4)
    places, there = places_of(known, asked)
    assert there.tolist() == [int(each) in known for each in asked]
    assert known[places[there]].tolist() == [9, 2, -4]
    places, there = places_of(ids(), asked)
    assert (places.tolist(), there.tolist()) == ([0] * 6, [False] * 6)


def test_captions_come_by_image_in_order_of_their_ids_and_else_of_the_file(faults: Faults) -> None:
    texts = Texts()
    texts.add([Caption(7, "last", 9), Caption(3, "only", 1), Caption(5, "of none", 2)])
    texts.add([Caption(7, "first", 4), Caption(9, "one"), Caption(9, "two"), Caption(6, "of none either", 3)])
    assert list(texts.by_image(ids(3, 4, 7, 9), faults)) == [("only",), (), ("first", "last"), ("one", "two")]
    assert faults.lines() == ("instances.json: 2 captions left out, of an image that is not listed (image 5, ...)",)
    assert list(Texts().by_image(ids(3, 4), faults)) == [(), ()]
    assert list(Texts().by_image(ids(), faults)) == []


@pytest.mark.parametrize(
    "odd",
    [
        SQUARE,
        [[1.0, 2.0, 3.0]],
        [[]],
        [[0, 0, 1, 1, 1, 2], [3.0, 3.0, 4.0, 4.0]],
        [[1e9, 0.0, 1.0, 1.0, 2.0, 2.0]],
        [[1, 0, True, 1, 2, 2]],
        [["1", 0, 1, 1, 2, 2]],
        {"size": [2, 3], "counts": [1, 5]},
        {"size": [2, 3], "counts": [1, 6]},
        "text",
        3,
    ],
)
def test_extents_of_many_are_those_of_each(odd: object) -> None:
    several = [SQUARE, [[0.5, 1.25, 4, 9, 2, 3], [-1, 2, 3, 4, 5, 6]], odd, [[0, 0, 0, 7, 7, 7]]]
    texts = [json.dumps(each).encode() for each in several]
    limits, wrong = _extents([texts[0], None, *texts[1:]])
    expected = [extent_of(SQUARE), None, *map(extent_of, several[1:])]
    assert wrong == {place: each for place, each in enumerate(expected) if isinstance(each, str)}
    rows = [each if isinstance(each, tuple) else (np.nan,) * 5 for each in expected]
    np.testing.assert_array_equal(limits, np.array(rows, np.float32))
    limits, wrong = _extents([b"[[1, 2", texts[0]])
    assert wrong == {0: "must be JSON"}
    np.testing.assert_array_equal(limits[1], np.array(extent_of(SQUARE), np.float32))


def test_objects_become_rows_by_image_and_keep_only_outlines_that_fit(faults: Faults) -> None:
    def made(number: int, image: int, category: int, outline: object = None, **more: Any) -> Object:
        raw = msgspec.Raw(b"" if outline is None else json.dumps(outline).encode())
        return Object(image, category, (1.0, 2.0, 3.0, float(number)), raw, number, **more)

    images = [Image(4, "a.jpg", 8, 8), Image(6, "b.jpg", 8, 10), Image(8, "c.jpg", 0, 0)]
    batches = Batches()
    objects = Objects(batches, faults)
    runs = {"size": [8, 10], "counts": [70, 10]}
    objects.add([made(10, 6, 2, runs), made(11, 4, 1, SQUARE, area=16.0), made(12, 4, 2, []), made(13, 5, 1, SQUARE)])
    objects.add([made(14, 4, 3), made(15, 4, 1, runs), made(16, 6, 2, [[0, 0, 20, 0, 20, 16]], iscrowd=1)])
    objects.add([made(17, 6, 1, [[0, 0, 21, 0, 20, 16]]), made(18, 8, 1, SQUARE), made(19, 6, 1, [[1, 2]])])
    rows = objects.rows(images, ids(4, 6, 8), [Category(1, "cup"), Category(2, "face")], ("face", "cup"))
    table = ObjectTable(rows, batches, 3)
    found = [list(table.of_image(place)) for place in range(3)]
    # the height of the box tells the id
    assert [[each.instance.bbox_xywh[3] for each in some] for some in found] == [[11, 12, 15], [10, 16, 17, 19], [18]]
    assert [[each.instance.label for each in some] for some in found] == [[1, 0, 1], [0, 0, 1, 1], [1]]
    outlines = [[each.instance.segmentation for each in some] for some in found]
    assert outlines == [[SQUARE, None, None], [runs, [[0, 0, 20, 0, 20, 16]], None, None], [None]]
    assert [each.area for each in found[0]] == [16, None, None]
    assert [each.crowd for each in found[1]] == [False, True, False, False]
    told = "\n".join(faults.lines())
    assert "1 objects left out, of an image that is not listed (id 13)" in told
    assert "1 objects left out, of a category that is not listed (id 14)" in told
    assert "1 objects without a mask, whose segmentation is malformed (id 19: it must have polygons of 6" in told
    assert "3 objects without a mask, whose segmentation does not fit their image (id 15: it must be of" in told
    assert len(faults.lines()) == 4


def test_of_many_objects_without_an_image_three_are_named_and_all_counted(faults: Faults) -> None:
    objects = Objects(Batches(), faults)
    objects.add([Object(9, 1, (0.0, 0.0, 1.0, 1.0), id=number, area=math.nan) for number in range(5)])
    rows = objects.rows([Image(4, "a.jpg", 8, 8)], ids(4), [], ())
    assert rows.num_rows == 0
    assert faults.lines() == (
        "instances.json: 5 objects left out, of an image that is not listed (id 0, id 1, id 2, ...)",
    )
    assert Objects(Batches(), faults).rows([], ids(), [], ()).num_rows == 0

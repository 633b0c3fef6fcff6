"""Annotated objects in Arrow columns."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data import Instance
from lfi_pipeline.data.objects import (
    OBJECTS,
    SEGMENTS,
    AnnotatedObject,
    InstancesByKey,
    ObjectTable,
    count_masks,
    count_objects,
)

OUTLINES = [[[0, 0, 4, 0, 4, 4]], {"size": [8, 8], "counts": [60, 4]}, [[1, 1, 2, 1, 2, 2]]]


def rows(*objects: tuple[int, int, float, bool, int]) -> Any:
    """A batch of (image, label, area, crowd, segment); the box of the n-th object is (n, n + 1, n + 2, n + 3)."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "image": image,
                "label": label,
                "left": n,
                "top": n + 1,
                "width": n + 2,
                "height": n + 3,
                "area": area,
                "crowd": crowd,
                "segment": segment,
            }
            for n, (image, label, area, crowd, segment) in enumerate(objects)
        ],
        schema=OBJECTS,
    )


def segments(*outlines: object) -> Any:
    return pa.record_batch([pa.array([json.dumps(each).encode() for each in outlines], pa.large_binary())], SEGMENTS)


@pytest.fixture
def table() -> ObjectTable:
    """Five objects of four images, of which the second has none; two batches of segmentations, one between empty."""
    objects = rows(
        (0, 1, 12.5, False, 2), (0, 0, math.nan, False, -1), (2, 0, 4, True, 1), (3, 2, 8, False, 0), (3, 2, 8, True, 0)
    )
    return ObjectTable(objects, [segments(OUTLINES[0]), segments(), segments(*OUTLINES[1:])], 4)


def test_objects_of_an_image_come_in_order_with_their_outlines(table: ObjectTable) -> None:
    assert len(table) == 5
    assert list(table.of_image(0)) == [
        AnnotatedObject(Instance(label=1, bbox_xywh=(0, 1, 2, 3), segmentation=OUTLINES[2]), 12.5, False),
        AnnotatedObject(Instance(label=0, bbox_xywh=(1, 2, 3, 4), segmentation=None), None, False),
    ]
    assert list(table.of_image(1)) == []
    assert list(table.of_image(2)) == [
        AnnotatedObject(Instance(label=0, bbox_xywh=(2, 3, 4, 5), segmentation=OUTLINES[1]), 4, True)
    ]
    assert [each.instance.segmentation for each in table.of_image(3)] == [OUTLINES[0]] * 2
    assert table.column("label").tolist() == [1, 0, 0, 2, 2]


def test_instances_leave_crowds_out_and_are_counted_without_being_read(table: ObjectTable) -> None:
    found = InstancesByKey(table, pa.array(["a", "b", "c", "d"]))
    plain = dict(found)
    assert {key: [each.label for each in objects] for key, objects in plain.items()} == {
        "a": [1, 0],
        "b": [],
        "c": [],
        "d": [2],
    }
    assert len(found) == 4
    assert (table.masks, table.crowds) == (2, 2)
    assert (count_objects(found), count_masks(found)) == (count_objects(plain), count_masks(plain)) == (3, 2)
    with pytest.raises(KeyError):
        found["e"]


def test_no_objects_at_all() -> None:
    table = ObjectTable(rows(), [], 2)
    assert (len(table), table.masks, table.crowds) == (0, 0, 0)
    assert list(table.of_image(1)) == []
    assert count_objects({}) == count_masks({}) == 0


@pytest.mark.parametrize(
    ("objects", "told"),
    [
        ([(1, 0, 1, False, -1), (0, 0, 1, False, -1)], "sorted by their images"),
        ([(2, 0, 1, False, -1)], "sorted by their images"),  # there are two images, 0 and 1
        ([(-1, 0, 1, False, -1)], "sorted by their images"),
        ([(0, 0, 1, False, 1)], "segmentations that are there"),  # there is one, 0
        ([(0, 0, 1, False, -2)], "segmentations that are there"),
    ],
)
def test_references_to_what_is_not_there_are_refused(objects: list[Any], told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        ObjectTable(rows(*objects), [segments(OUTLINES[0])], 2)
    ObjectTable(rows((0, 0, 1, False, 0), (1, 0, 1, False, -1)), [segments(OUTLINES[0])], 2)

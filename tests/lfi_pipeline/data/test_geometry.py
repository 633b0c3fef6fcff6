from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.geometry import checked_mask

BOX = [5, 2, 15, 2, 15, 8, 5, 8]


def test_outlines_are_rasterised_as_pycocotools_does() -> None:
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([BOX, [1, 1, 3, 1, 3, 5]], 12, 20)))
    found = checked_mask([BOX, [1, 1, 3, 1, 3, 5]], 12, 20, "x")
    np.testing.assert_array_equal(found, expected.astype(bool))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0.02, 0.98))
def test_run_lengths_of_both_forms_are_decoded_as_pycocotools_does(h: int, w: int, seed: int, share: float) -> None:
    mask = (np.random.default_rng(seed).random((h, w)) < share).astype(np.uint8)
    code = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": [h, w], "counts": code["counts"].decode()}
    np.testing.assert_array_equal(checked_mask(text, h, w, "x"), mask.astype(bool))
    flat = mask.ravel(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    plain = {"size": [h, w], "counts": runs if flat[0] == 0 else [0, *runs]}
    np.testing.assert_array_equal(checked_mask(plain, h, w, "x"), mask.astype(bool))


def test_an_outline_may_leave_the_image_by_its_own_size() -> None:
    assert checked_mask([[-5, 2, 30, 2, 30, 8, -5, 8]], 12, 20, "x").sum() > 100


@pytest.mark.parametrize(
    ("segmentation", "why"),
    [
        (None, "polygons or run lengths"),
        ([], "got none"),
        ([[8, 8, 9, 9]], "6 or more"),
        ([BOX, [1]], "6 or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "even"),
        ([[1, 2, 3, 4, 5, "6"]], "of numbers"),
        ([[1, 2, 3, 4, 5, True]], "of numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([[1, 2, 3, 4, 5, float("inf")]], "finite"),
        ([[1, 2, 3, 4, 5, 1e300]], "finite"),
        ([[1, 2, 3, 4, 5, 10**400]], "finite"),
        ([[1, 2, 3, 4, 5, 1000]], "lie in the image"),
        ([[-21, 2, 3, 4, 5, 6]], "lie in the image"),
        ({"size": [12, 20], "counts": [10, 99999999]}, "sum to 12 x 20"),
        ({"size": [12, 20], "counts": [239]}, "sum to 12 x 20"),
        ({"size": [12, 20], "counts": [-1, 241]}, "whole numbers"),
        ({"size": [12, 20], "counts": [240.0]}, "whole numbers"),
        ({"size": [20, 12], "counts": [240]}, "image's 12 by 20"),
        ({"size": [12.0, 20], "counts": [240]}, "size of two whole"),
        ({"size": [1 << 40, 1 << 40], "counts": "1"}, "size of two whole"),
        ({"counts": [240]}, "size of two whole"),
        ({"size": [12, 20]}, "whole numbers"),
        ({"size": [12, 20], "counts": "ooooooooooooooooo"}, "60 bits"),
        ({"size": [12, 20], "counts": "o"}, "part of a number"),
        ({"size": [12, 20], "counts": "\xe9"}, "ASCII"),
        ({"size": [12, 20], "counts": "~"}, "letters"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(segmentation: Any, why: str) -> None:
    with pytest.raises(DatasetError, match=f"^file, annotation 7: its segmentation .*{why}") as caught:
        checked_mask(segmentation, 12, 20, "file, annotation 7")
    assert len(str(caught.value)) < 300


def test_an_image_of_no_or_too_many_pixels_has_no_mask() -> None:
    for height, width in ((0, 20), (1 << 20, 1 << 20)):
        with pytest.raises(DatasetError, match="pixels"):
            checked_mask([BOX], height, width, "x")


VALUE = st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none(), st.booleans())


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        VALUE,
        st.lists(st.lists(VALUE, max_size=9), max_size=3),
        st.fixed_dictionaries({"size": st.lists(VALUE, max_size=3), "counts": st.lists(VALUE, max_size=5) | VALUE}),
        st.fixed_dictionaries({"size": st.just([3, 4]), "counts": st.text("0123456789:;PQRo", max_size=8)}),
    )
)
def test_anything_is_a_mask_or_an_error(segmentation: Any) -> None:
    with contextlib.suppress(DatasetError):
        assert checked_mask(segmentation, 3, 4, "x").shape == (3, 4)

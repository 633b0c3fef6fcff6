"""Outlines and run lengths of COCO's form as masks; nothing reaches C code that was not checked."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lfi_pipeline.core.errors import DatasetError

MAX_PIXELS = 1 << 27
"""Of a mask; no image that `read_image` accepts has more."""
FAR = 1e9  # pixels
_LONGEST_CODE = 1 << 24  # characters of compressed run lengths


class Extent(NamedTuple):
    """Where a segmentation lies: of outlines the smallest and largest coordinates, of run lengths the image's size.

    Attributes:
        exact: `right` and `bottom` are the width and height of the image, as run lengths say.
    """

    left: float
    top: float
    right: float
    bottom: float
    exact: bool


def checked_mask(segmentation: object, height: int, width: int, source: str) -> npt.NDArray[np.bool_]:
    """Rasterise a segmentation to a boolean mask [height, width].

    Args:
        segmentation: polygons, or run lengths as a list or as COCO's compressed text.
        height, width: of the image in pixels.
        source: what to name in an error, such as a file and an annotation.

    Raises:
        DatasetError: as `extent_of` and `misfit_of` say.
    """
    extent, runs = _measured(segmentation)
    fault = extent if isinstance(extent, str) else misfit_of(extent, height, width)
    if fault is not None:
        raise DatasetError(f"{source}: its segmentation {fault}.")
    if runs is not None:
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    from pycocotools import mask as coco_mask

    codes = coco_mask.frPyObjects(segmentation, height, width)
    decoded: npt.NDArray[np.uint8] = coco_mask.decode(coco_mask.merge(codes))
    return decoded.astype(bool)


def extent_of(segmentation: object) -> Extent | str:
    """Return where a segmentation lies, or what is wrong with it whatever its image.

    Polygons must be of finite numbers, an even count of 6 or more; run lengths must be non-negative and sum to the
    pixels of their `size`.
    """
    return _measured(segmentation)[0]


def _measured(segmentation: object) -> tuple[Extent | str, list[int] | None]:
    """Return `extent_of` a segmentation, and its run lengths where it is right ones: they are long to decode."""
    if isinstance(segmentation, list):
        return _extent_of_polygons(segmentation), None
    if isinstance(segmentation, dict):
        return _measured_runs(segmentation)
    return f"must be polygons or run lengths, got {_shown(segmentation)}", None


def misfit_of(extent: Extent, height: int, width: int) -> str | None:
    """Say why a segmentation cannot be of an image of this size; None where it can.

    Run lengths must be of the image's size; polygons, which tools leave unclipped, may leave it by its own size on each
    side.
    """
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        return f"needs an image of 1 to {MAX_PIXELS} pixels, got {height} by {width}"
    if extent.exact:
        if (extent.bottom, extent.right) == (height, width):
            return None
        return f"must be of the image's {height} by {width} pixels, got {extent.bottom:.0f} by {extent.right:.0f}"
    if -width <= extent.left and extent.right <= 2 * width and -height <= extent.top and extent.bottom <= 2 * height:
        return None
    return (
        f"must lie in the image's {height} by {width} pixels, got x from {extent.left:.6g} to {extent.right:.6g} and y "
        f"from {extent.top:.6g} to {extent.bottom:.6g}"
    )


def _extent_of_polygons(polygons: list[Any]) -> Extent | str:
    if not polygons:
        return "must hold a polygon, got none"
    left = top = math.inf
    right = bottom = -math.inf
    for polygon in polygons:
        if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2:
            return f"must have polygons of 6 or more numbers, an even count, got {_shown(polygon)}"
        if not set(map(type, polygon)) <= {float, int}:
            return f"must have polygons of numbers, got {_shown(polygon)}"
        across, down = polygon[::2], polygon[1::2]
        left, right = min(left, *across), max(right, *across)
        top, bottom = min(top, *down), max(bottom, *down)
        if not (left > -FAR and right < FAR and top > -FAR and bottom < FAR and _is_finite(polygon)):
            return f"must have polygons of finite numbers below {FAR:.0e}, got {_shown(polygon)}"
    return Extent(float(left), float(top), float(right), float(bottom), False)


def _is_finite(numbers: list[float]) -> bool:
    """Whether no number is NaN, which comparisons pass over; all are known to be smaller than `FAR`."""
    return math.isfinite(sum(numbers))


def _measured_runs(code: dict[Any, Any]) -> tuple[Extent | str, list[int] | None]:
    size = code.get("size")
    if not (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and side > 0 for side in size)
        and size[0] * size[1] <= MAX_PIXELS
    ):
        return f"must have a size of two whole numbers, [height, width], got {_shown(size)}", None
    runs = _runs(code.get("counts"))
    if isinstance(runs, str):
        return runs, None
    if (total := sum(runs)) != size[0] * size[1]:
        return f"must have run lengths that sum to {size[0]} x {size[1]} pixels, got {total}", None
    return Extent(0.0, 0.0, float(size[1]), float(size[0]), True), runs


def _runs(counts: object) -> list[int] | str:
    """Return run lengths, zeros first, or what is wrong with them."""
    if isinstance(counts, str | bytes):
        return _uncompressed(counts)
    if not isinstance(counts, list) or not all(type(run) is int and 0 <= run <= MAX_PIXELS for run in counts):
        return f"must have run lengths of whole numbers, got {_shown(counts)}"
    return counts


def _uncompressed(text: str | bytes) -> list[int] | str:
    """Decode COCO's compressed run lengths: 5 bits a character from `0`, lowest first, from the third on differences.

    The format is that of `rleFrString` in cocoapi's maskApi.c.
    """
    try:
        code = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError:
        return f"must have compressed run lengths in ASCII, got {_shown(text)}"
    if len(code) > _LONGEST_CODE or (code and not 48 <= min(code) <= max(code) < 112):
        return f"must have compressed run lengths of the letters '0' to 'o', got {_shown(text)}"
    runs: list[int] = []
    value = shift = 0
    for letter in code:
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            if shift > 60:
                return "must have compressed run lengths of numbers of 60 bits"
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if not 0 <= value <= MAX_PIXELS:
            return f"must have run lengths from 0 to {MAX_PIXELS}, got {value}"
        runs.append(value)
        value = shift = 0
    return "must have compressed run lengths that are whole, got a part of a number" if shift else runs


def _shown(value: object) -> str:
    if isinstance(value, list | dict) and len(value) > 8:
        value = list(itertools.islice(value, 8))
        return f"{repr(value)[:80]}..."
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."

"""Collect the records of a COCO listing in columns: images and categories by id, captions, objects."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lfi_pipeline.data.geometry import FAR, MAX_PIXELS, Extent, extent_of, misfit_of
from lfi_pipeline.data.objects import OBJECTS, SEGMENTS
from lfi_pipeline.data.readers.coco_json import Caption, Category, Faults, Image, Object

T = TypeVar("T", Image, Category)
_AT_ONCE = 8192  # images whose captions are Python's at a time
_NO_MASK = frozenset({b"", b"null", b"[]", b"{}", b"[[]]"})
_MOST_NAMED = 3
_NUMBERS = {"id": "id", "image_id": "image_id", "category": "category_id", "crowd": "iscrowd", "segment": ""}
_LENGTHS = ("left", "top", "width", "height", "area")
_MALFORMED = "objects without a mask, whose segmentation is malformed"
_MISFIT = "objects without a mask, whose segmentation does not fit their image"


class ById(Generic[T]):
    """Images or categories by id; an id that two different records share is left out."""

    def __init__(self, faults: Faults, name: str) -> None:
        self.found: dict[int, T] = {}
        self._faults, self._name = faults, name
        self._ambiguous: set[int] = set()

    def add(self, records: Sequence[T]) -> None:
        for record in records:
            if isinstance(record, Image):
                record.file_name = tidy(record.file_name)
            known = self.found.get(record.id)
            if known is None and record.id not in self._ambiguous:
                self.found[record.id] = record
            elif known != record:
                if known is not None:
                    del self.found[record.id]
                    self._ambiguous.add(record.id)
                self._faults.add(f"{self._name} left out, whose id is that of another", f"id {record.id}")


@dataclass(slots=True)
class Texts:
    """Captions in the order of the file."""

    images: list[npt.NDArray[np.int64]] = field(default_factory=list)
    numbers: list[npt.NDArray[np.int64]] = field(default_factory=list)
    texts: list[Any] = field(default_factory=list)

    def add(self, records: Sequence[Caption]) -> None:
        self.images.append(np.fromiter((each.image_id for each in records), np.int64, len(records)))
        self.numbers.append(np.fromiter((each.id for each in records), np.int64, len(records)))
        self.texts.append(pa.array([each.caption for each in records], pa.large_string()))

    def by_image(self, ids: npt.NDArray[np.int64], faults: Faults) -> Iterator[tuple[str, ...]]:
        """Yield the captions of each image of `ids`, in order of their own."""
        images = np.concatenate([np.zeros(0, np.int64), *self.images])
        numbers = np.concatenate([np.zeros(0, np.int64), *self.numbers])
        places, listed = places_of(ids, images)
        if not listed.all():
            first = int(images[~listed][0])
            faults.add("captions left out, of an image that is not listed", f"image {first}", int((~listed).sum()))
        kept = np.flatnonzero(listed)
        order = kept[np.lexsort((numbers[kept], places[kept]))]
        texts = pa.chunked_array(self.texts, pa.large_string()).combine_chunks().take(pa.array(order))
        starts = np.searchsorted(places[order], np.arange(len(ids) + 1))
        for first in range(0, len(ids), _AT_ONCE):
            bounds = starts[first : first + _AT_ONCE + 1].tolist()
            some = texts.slice(bounds[0], bounds[-1] - bounds[0]).to_pylist()
            for start, end in itertools.pairwise(bounds):
                yield tuple(some[start - bounds[0] : end - bounds[0]])


class Objects:
    """Objects in the order of the file; segmentations go to `writer` at once and are not held in memory."""

    def __init__(self, writer: Any, faults: Faults) -> None:
        self._writer, self._faults = writer, faults
        self._columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in (*_NUMBERS, *_LENGTHS, "extent")}
        self._segments = 0

    def add(self, records: Sequence[Object]) -> None:
        count = len(records)
        texts = [bytes(each.segmentation) for each in records]
        limits, wrong = _extents([None if text in _NO_MASK else text for text in texts])
        for place, why in wrong.items():
            self._faults.add(_MALFORMED, f"id {records[place].id}: it {why}")
        has_mask = ~np.isnan(limits[:, 0])
        segments = np.where(has_mask, self._segments + np.cumsum(has_mask) - 1, -1)
        kept = [texts[place] for place in np.flatnonzero(has_mask).tolist()]
        self._writer.write_batch(pa.record_batch([pa.array(kept, pa.large_binary())], schema=SEGMENTS))
        self._segments += len(kept)
        for name, source in _NUMBERS.items():
            if source:
                self._columns[name].append(np.fromiter(map(attrgetter(source), records), np.int64, count))
        self._columns["segment"].append(segments)
        self._columns["extent"].append(limits)
        boxes = np.array([each.bbox for each in records], np.float64).reshape(-1, 4)
        areas = np.array([math.nan if each.area is None else each.area for each in records])
        for name, values in zip(_LENGTHS, (*boxes.T.copy(), areas), strict=True):
            self._columns[name].append(values)

    def rows(
        self,
        images: Sequence[Image],
        ids: npt.NDArray[np.int64],
        categories: Sequence[Category],
        classes: Sequence[str],
    ) -> Any:
        """Return the record batch of an `ObjectTable`; the collected columns are freed one by one."""
        numbers = self._taken("id")
        places, listed = places_of(ids, self._taken("image_id"))
        number_of = {name: number for number, name in enumerate(classes)}
        labels = np.array([number_of[category.name] for category in categories], np.int32)
        which, known = places_of(np.array([category.id for category in categories], np.int64), self._taken("category"))
        self._leave_out(numbers, listed, "objects left out, of an image that is not listed")
        self._leave_out(numbers, known | ~listed, "objects left out, of a category that is not listed")
        kept = np.flatnonzero(listed & known)
        kept = kept[np.argsort(places[kept], kind="stable")]
        places = places[kept]
        segments = self._taken("segment", kept)
        self._check_masks(numbers[kept], segments, self._taken("extent", kept), places, images)
        lengths = [self._taken(name, kept) for name in _LENGTHS]
        columns = [places, labels[which[kept]], *lengths, self._taken("crowd", kept) > 0, segments]
        arrays = [pa.array(each, kind) for each, kind in zip(columns, OBJECTS.types, strict=True)]
        return pa.record_batch(arrays, schema=OBJECTS)

    def _taken(self, name: str, kept: npt.NDArray[np.int64] | None = None) -> npt.NDArray[Any]:
        parts = self._columns.pop(name)
        if not parts:
            parts = [np.zeros((0, 5), np.float32) if name == "extent" else np.zeros(0, np.int64)]
        whole = np.concatenate(parts)
        return whole if kept is None else whole[kept]

    def _leave_out(self, ids: npt.NDArray[np.int64], fine: npt.NDArray[np.bool_], reason: str) -> None:
        for number in ids[~fine][:_MOST_NAMED].tolist():
            self._faults.add(reason, f"id {number}")
        if (more := int((~fine).sum()) - _MOST_NAMED) > 0:
            self._faults.add(reason, "", more)

    def _check_masks(
        self,
        numbers: npt.NDArray[np.int64],
        segments: npt.NDArray[np.int64],
        extents: npt.NDArray[np.float32],
        places: npt.NDArray[np.int64],
        images: Sequence[Image],
    ) -> None:
        """Take the segmentation from objects that it does not fit; the rule is that of `misfit_of`."""
        height = np.array([image.height for image in images], np.float32)[places]
        width = np.array([image.width for image in images], np.float32)[places]
        left, top, right, bottom, exact = extents.T
        inside = (left >= -width) & (right <= 2 * width) & (top >= -height) & (bottom <= 2 * height)
        fits = np.where(exact == 1, (right == width) & (bottom == height), inside)
        fits &= (height > 0) & (width > 0) & (height.astype(float) * width <= MAX_PIXELS)
        wrong = np.flatnonzero((segments >= 0) & ~fits)
        for row in wrong.tolist():
            extent = Extent(left[row], top[row], right[row], bottom[row], bool(exact[row]))
            why = misfit_of(extent, int(height[row]), int(width[row]))
            self._faults.add(_MISFIT, f"id {numbers[row]}: it {why}")
        segments[wrong] = -1


def tidy(name: str) -> str:
    """Return a file name as a POSIX path: some tools write backslashes, or `./` before it."""
    name = name.replace("\\", "/")
    while name.startswith("./"):
        name = name.removeprefix("./")
    return name


def places_of(
    ids: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the place of each of `wanted` in the ascending `ids`, and whether it is there."""
    if not len(ids):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return places, ids[places] == wanted


_decode_outlines = msgspec.json.Decoder(list[list[list[float]]]).decode


def _extents(texts: Sequence[bytes | None]) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    """Return what `extent_of` says of segmentations; polygons of numbers, which nearly all are, all at once.

    Returns:
        limits: fp32 [R, 5], the fields of `Extent`; NaN where there is no segmentation, or one that is malformed.
        wrong: place -> what is wrong with a malformed one.
    """
    limits, wrong = np.full((len(texts), 5), np.nan, np.float32), dict[int, str]()
    plain = [place for place, text in enumerate(texts) if text is not None and text.startswith(b"[[")]
    outlines = _outlines([text for place in plain if (text := texts[place]) is not None])
    done = _polygons(outlines) if outlines else None
    if done is not None:
        limits[plain] = done
    for place in np.flatnonzero(np.isnan(limits[:, 0])).tolist():
        text = texts[place]
        if text is None:
            continue
        try:
            extent = extent_of(json.loads(text))
        except (ValueError, RecursionError):
            extent = "must be JSON"
        if isinstance(extent, str):
            wrong[place] = extent
        else:
            limits[place] = extent
    return limits, wrong


def _outlines(texts: Sequence[bytes]) -> list[list[list[float]]] | None:
    try:
        return _decode_outlines(b"[" + b",".join(texts) + b"]")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _polygons(outlines: Sequence[list[list[float]]]) -> npt.NDArray[np.float64] | None:
    """Return [R, 5], the fields of `Extent`, NaN where one is far off; None where one of them is no outline."""
    polygons = list(itertools.chain.from_iterable(outlines))
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    counts = np.fromiter(map(len, outlines), np.int64, len(outlines))
    if not counts.all() or (lengths % 2).any() or (lengths < 6).any():
        return None
    numbers = np.fromiter(itertools.chain.from_iterable(polygons), np.float64, int(lengths.sum())).reshape(-1, 2)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])[np.concatenate([[0], np.cumsum(counts)[:-1]])] // 2
    low, high = np.minimum.reduceat(numbers, starts), np.maximum.reduceat(numbers, starts)
    limits = np.concatenate([low, high, np.zeros((len(low), 1))], axis=1)
    limits[(np.maximum(np.abs(low), np.abs(high)) >= FAR).any(1)] = np.nan
    return limits

"""Columns of a COCO listing as its records come: images and categories by id, captions, objects."""

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

from lfi_pipeline.data.geometry import MAX_PIXELS, Extent, extent_of, misfit_of
from lfi_pipeline.data.objects import OBJECTS, SEGMENTS
from lfi_pipeline.data.readers.coco_records import Caption, Category, Faults, Image, Object

T = TypeVar("T", Image, Category)
_AT_ONCE = 8192  # images whose captions are Python's at a time
_NO_MASK = frozenset({b"", b"null", b"[]", b"{}", b"[[]]"})
_MALFORMED = "objects without a mask, whose segmentation is malformed"
_MISFIT = "objects without a mask, whose segmentation does not fit their image"


class ById(Generic[T]):
    """Images or categories by their ids; an id that stands for two of them stands for none."""

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
    """Captions as they come."""

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
    """Objects as they come; what outlines them is written away at once."""

    def __init__(self, writer: Any, faults: Faults) -> None:
        self._writer, self._faults = writer, faults
        self._numbers: list[npt.NDArray[np.int64]] = []  # id, image, category, crowd, segment
        self._lengths: list[npt.NDArray[np.float64]] = []  # box, area, extent
        self._segments = 0

    def add(self, records: Sequence[Object]) -> None:
        count = len(records)
        numbers, lengths = np.full((count, 5), -1, np.int64), np.full((count, 10), np.nan)
        for column, name in enumerate(("id", "image_id", "category_id", "iscrowd")):
            numbers[:, column] = np.fromiter(map(attrgetter(name), records), np.int64, count)
        lengths[:, :4] = np.array([each.bbox for each in records], np.float64).reshape(-1, 4)
        lengths[:, 4] = [math.nan if each.area is None else each.area for each in records]
        texts: list[bytes] = []
        for place, each in enumerate(records):
            text = bytes(each.segmentation)
            if text in _NO_MASK:
                continue
            extent = _extent(text)
            if isinstance(extent, str):
                self._faults.add(_MALFORMED, f"id {each.id}: it {extent}")
                continue
            numbers[place, 4] = self._segments + len(texts)
            lengths[place, 5:] = extent
            texts.append(text)
        self._writer.write_batch(pa.record_batch([pa.array(texts, pa.large_binary())], schema=SEGMENTS))
        self._segments += len(texts)
        self._numbers.append(numbers)
        self._lengths.append(lengths)

    def rows(
        self,
        images: Sequence[Image],
        ids: npt.NDArray[np.int64],
        categories: Sequence[Category],
        classes: Sequence[str],
    ) -> Any:
        """Return the record batch of an `ObjectTable`."""
        numbers = np.concatenate([np.zeros((0, 5), np.int64), *self._numbers])
        lengths = np.concatenate([np.zeros((0, 10)), *self._lengths])
        places, listed = places_of(ids, numbers[:, 1])
        number_of = {name: number for number, name in enumerate(classes)}
        labels = np.array([number_of[category.name] for category in categories], np.int32)
        which, known = places_of(np.array([category.id for category in categories], np.int64), numbers[:, 2])
        self._leave_out(numbers[:, 0], listed, "objects left out, of an image that is not listed")
        self._leave_out(numbers[:, 0], known | ~listed, "objects left out, of a category that is not listed")
        kept = np.flatnonzero(listed & known)
        kept = kept[np.argsort(places[kept], kind="stable")]
        numbers, lengths, places = numbers[kept], lengths[kept], places[kept]
        self._check_masks(numbers, lengths[:, 5:], places, images)
        columns = [places, labels[which[kept]], *lengths[:, :5].T, numbers[:, 3] > 0, numbers[:, 4]]
        arrays = [pa.array(np.ascontiguousarray(each), kind) for each, kind in zip(columns, OBJECTS.types, strict=True)]
        return pa.record_batch(arrays, schema=OBJECTS)

    def _leave_out(self, ids: npt.NDArray[np.int64], fine: npt.NDArray[np.bool_], reason: str) -> None:
        for number in ids[~fine][:5].tolist():
            self._faults.add(reason, f"id {number}")
        if (more := int((~fine).sum()) - 5) > 0:
            self._faults.add(reason, "", more)

    def _check_masks(
        self,
        numbers: npt.NDArray[np.int64],
        extents: npt.NDArray[np.float64],
        places: npt.NDArray[np.int64],
        images: Sequence[Image],
    ) -> None:
        """Take the segmentation from objects that it does not fit."""
        height = np.array([image.height for image in images], np.float64)[places]
        width = np.array([image.width for image in images], np.float64)[places]
        left, top, right, bottom, exact = extents.T
        inside = (left >= -width) & (right <= 2 * width) & (top >= -height) & (bottom <= 2 * height)
        fits = np.where(exact == 1, (right == width) & (bottom == height), inside)
        fits &= (height > 0) & (width > 0) & (height * width <= MAX_PIXELS)
        wrong = np.flatnonzero((numbers[:, 4] >= 0) & ~fits)
        for row in wrong.tolist():
            extent = Extent(left[row], top[row], right[row], bottom[row], bool(exact[row]))
            why = misfit_of(extent, int(height[row]), int(width[row]))
            self._faults.add(_MISFIT, f"id {numbers[row, 0]}: it {why}")
        numbers[wrong, 4] = -1


def tidy(name: str) -> str:
    """Return a file name as a POSIX path: some tools write backslashes, or `./` before it."""
    name = name.replace("\\", "/")
    while name.startswith("./"):
        name = name.removeprefix("./")
    return name


def places_of(
    ids: npt.NDArray[np.int64], asked: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the place of each of `asked` in the ascending `ids`, and whether it is there."""
    if not len(ids):
        return np.zeros(len(asked), np.int64), np.zeros(len(asked), np.bool_)
    places = np.minimum(np.searchsorted(ids, asked), len(ids) - 1)
    return places, ids[places] == asked


_decode = msgspec.json.Decoder(list[list[float]]).decode


def _extent(text: bytes) -> Extent | str:
    try:
        return extent_of(_decode(text))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        return extent_of(json.loads(text))
    except (ValueError, RecursionError):
        return "must be JSON"

"""The annotated objects of a split in Arrow columns: in memory, or in files that are mapped and read when used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Instance

SEGMENTS = pa.schema([("segmentation", pa.large_binary())])
OBJECTS = pa.schema(
    [
        ("image", pa.int64()),
        ("label", pa.int32()),
        ("left", pa.float64()),
        ("top", pa.float64()),
        ("width", pa.float64()),
        ("height", pa.float64()),
        ("area", pa.float64()),
        ("crowd", pa.bool_()),
        ("segment", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One object.

    Attributes:
        instance: class, box and outline.
        area: pixels, as annotated; None where it is not.
        crowd: whether it is a region of many objects.
    """

    instance: Instance
    area: float | None
    crowd: bool


class ObjectTable:
    """Objects in order of their images.

    Args:
        rows: a record batch of `OBJECTS`, sorted by `image` (place of the sample); `segment` is a row of `segments`, or
            -1, and `area` NaN where there is none.
        segments: record batches of `SEGMENTS`, JSON texts.
        samples: how many images there are.
    """

    def __init__(self, rows: Any, segments: Sequence[Any], samples: int) -> None:
        self._columns = {name: rows.column(name) for name in OBJECTS.names}
        images, references = self.column("image"), self.column("segment")
        self._segments = segments
        self._segment_starts = np.cumsum([0, *(len(batch) for batch in segments)])
        if len(images) and not (images[0] >= 0 and images[-1] < samples and bool((np.diff(images) >= 0).all())):
            raise DatasetError("Objects must be sorted by their images.")
        if len(images) and not (references.min() >= -1 and references.max() < self._segment_starts[-1]):
            raise DatasetError("Objects must have segmentations that are there.")
        self._starts = np.searchsorted(images, np.arange(samples + 1))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column of `OBJECTS` for all objects, in order."""
        values: npt.NDArray[Any] = self._columns[name].to_numpy(zero_copy_only=False)
        return values

    @property
    def masks(self) -> int:
        """How many objects have a segmentation and are no crowds."""
        return int(((self.column("segment") >= 0) & ~self.column("crowd")).sum())

    @property
    def crowds(self) -> int:
        """How many are regions of many objects."""
        return int(self.column("crowd").sum())

    def of_image(self, place: int) -> Iterator[AnnotatedObject]:
        """Yield the objects of the image at `place`, in the order of the file."""
        first, count = int(self._starts[place]), int(self._starts[place + 1] - self._starts[place])
        values = [self._columns[name].slice(first, count).to_pylist() for name in OBJECTS.names[1:]]
        for label, left, top, width, height, area, crowd, segment in zip(*values, strict=True):
            instance = Instance(
                label=label, bbox_xywh=(left, top, width, height), segmentation=self._segmentation(segment)
            )
            yield AnnotatedObject(instance, None if area != area else area, crowd)

    def _segmentation(self, segment: int) -> object:
        if segment < 0:
            return None
        number = int(np.searchsorted(self._segment_starts, segment, side="right")) - 1
        text = self._segments[number].column(0)[segment - int(self._segment_starts[number])].as_py()
        return json.loads(text)


class InstancesByKey(Mapping[str, tuple[Instance, ...]]):
    """Sample key -> its objects without crowds, read from the table at each access."""

    def __init__(self, table: ObjectTable, keys: Any) -> None:
        self._table, self._keys = table, keys
        self._places: dict[str, int] | None = None

    def __getitem__(self, key: str) -> tuple[Instance, ...]:
        if self._places is None:
            self._places = {name: place for place, name in enumerate(self._keys.to_pylist())}
        return tuple(each.instance for each in self._table.of_image(self._places[key]) if not each.crowd)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys.to_pylist())

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def objects(self) -> int:
        """How many there are altogether; none is read to count them."""
        return len(self._table) - self._table.crowds

    @property
    def masks(self) -> int:
        """How many of them have a segmentation."""
        return self._table.masks


def count_objects(instances: Mapping[str, tuple[Instance, ...]]) -> int:
    """Return the number of objects of all samples."""
    return instances.objects if isinstance(instances, InstancesByKey) else sum(map(len, instances.values()))


def count_masks(instances: Mapping[str, tuple[Instance, ...]]) -> int:
    """Return the number of objects of all samples that have a segmentation."""
    if isinstance(instances, InstancesByKey):
        return instances.masks
    return sum(each.segmentation is not None for objects in instances.values() for each in objects)

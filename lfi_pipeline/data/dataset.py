"""A split in memory: its samples and annotated objects, validation parts, and labels matched by class name."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.io import why_unsafe
from lfi_pipeline.data.geometry import checked_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One annotated object.

    Attributes:
        label: index into `Dataset.classes`.
        bbox_xywh: box in pixels, COCO order (left, top, width, height).
        segmentation: COCO RLE or polygons, as the annotation file has it; None where only the box is known.
    """

    label: int
    bbox_xywh: tuple[float, float, float, float]
    segmentation: object

    def mask(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """Rasterise the segmentation to a boolean mask [height, width]; raises as `checked_mask`."""
        return checked_mask(self.segmentation, height, width, f"object with box {list(self.bbox_xywh)}")


def class_mask(
    instances: Iterable[Instance], label: int | None, height: int, width: int
) -> npt.NDArray[np.bool_] | None:
    """Return the union of the masks of a class's objects, [height, width]; None where none of them has one."""
    masks = [each.mask(height, width) for each in instances if each.label == label and each.segmentation is not None]
    union: npt.NDArray[np.bool_] | None = np.logical_or.reduce(masks) if masks else None
    return union


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image and what is known of it.

    Attributes:
        key: unique and stable within the split.
        path: POSIX path below the data root.
        captions: captions in file order; may be empty.
        labels: sorted indices into `Dataset.classes`.
        domain: visual domain, "" where the data set has none.
        height: pixels, as annotated; 0 where only the image itself tells.
        width: pixels, as annotated, or 0.
    """

    key: str
    path: str
    captions: tuple[str, ...]
    labels: tuple[int, ...]
    domain: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One split of a data set, read from disk (annotations in memory, images left where they are).

    Attributes:
        root: the data root; paths of samples are relative to it.
        classes: class names; empty for unlabelled images.
        samples: in a fixed order; a `SampleTable` when read from disk.
        instances: sample key -> annotated objects, where the data set has masks.
        prompts: templates with one `{}` for a class name.
        notes: lines that say what was left out in reading, and how often.
    """

    name: str
    root: Path
    split: str
    classes: tuple[str, ...]
    samples: Sequence[Sample]
    instances: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)


_CHUNK = 8192  # samples; what exists twice while a table is built or walked
SAMPLES = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("labels", pa.list_(pa.int32())),
        ("domain", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)


class SampleTable(Sequence[Sample]):
    """An immutable sequence of samples, kept as Arrow record batches of at most 8192 rows."""

    __slots__ = ("_batches", "_starts")

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        """Take `samples` in, chunk by chunk; an iterator is never held as a whole.

        Raises:
            DatasetError: a path that leaves the data root, or text that is not UTF-8.
        """
        self._batches: list[Any] = []
        self._starts = [0]
        source = iter(samples)
        while chunk := list(islice(source, _CHUNK)):
            self._batches.append(_batch(chunk))
            self._starts.append(self._starts[-1] + len(chunk))

    @classmethod
    def of_batches(cls, batches: Iterable[Any]) -> SampleTable:
        """Make a table of the record batches of another, without a copy.

        Raises:
            DatasetError: they have other columns.
        """
        table = cls()
        for batch in batches:
            if not batch.schema.equals(SAMPLES):
                raise DatasetError(f"Samples must have the columns {', '.join(SAMPLES.names)}.")
            table._batches.append(batch)
            table._starts.append(table._starts[-1] + len(batch))
        return table

    @property
    def batches(self) -> Sequence[Any]:
        """The record batches, in order."""
        return tuple(self._batches)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleTable: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleTable:
        if isinstance(index, slice):
            return SampleTable(self[i] for i in range(*index.indices(len(self))))
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._starts, position) - 1
        row = self._batches[number].slice(position - self._starts[number], 1)
        return next(_samples(row))

    def __iter__(self) -> Iterator[Sample]:
        for batch in self._batches:
            yield from _samples(batch)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SampleTable):
            return NotImplemented
        return self._batches == other._batches  # chunks of equal tables are equal: each is full but the last

    __hash__ = None  # type: ignore[assignment]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(batch.nbytes for batch in self._batches)

    def column(self, name: str) -> Any:
        """Return one field of all samples as a `pyarrow.ChunkedArray`."""
        return pa.chunked_array([batch.column(name) for batch in self._batches], type=SAMPLES.field(name).type)

    def repeated_keys(self, most: int = 3) -> list[str]:
        """Return up to `most` keys that more than one sample has."""
        keys = self.column("key")
        if pc.count_distinct(keys).as_py() == len(self):
            return []
        counts = keys.value_counts()
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        return [str(key) for key in repeated.field("values")[:most].to_pylist()]


def _batch(samples: Sequence[Sample]) -> Any:
    for sample in samples:
        reason = why_unsafe(sample.path)
        if reason is not None:
            raise DatasetError(
                f"Sample {sample.key!r}: its path {sample.path!r} must stay below the data root, and {reason}."
            )
    try:
        return pa.RecordBatch.from_pydict(
            {name: [getattr(sample, name) for sample in samples] for name in SAMPLES.names}, schema=SAMPLES
        )
    except UnicodeEncodeError as error:
        bad = next(s for s in samples if _not_utf8(s))
        raise DatasetError(f"Sample {bad.key!r} ({bad.path!r}): names and captions must be UTF-8: {error}.") from error


def _not_utf8(sample: Sample) -> bool:
    try:
        "".join((sample.key, sample.path, sample.domain, *sample.captions)).encode()
    except UnicodeEncodeError:
        return True
    return False


def _samples(batch: Any) -> Iterator[Sample]:
    columns = (batch.column(name).to_pylist() for name in SAMPLES.names)
    for key, path, captions, labels, domain, height, width in zip(*columns, strict=True):
        yield Sample(
            key=key,
            path=path,
            captions=tuple(captions),
            labels=tuple(labels),
            domain=domain,
            height=height,
            width=width,
        )


DEFAULT_SHARE = 0.1
TRAIN, VAL, WHOLE = "train", "val", "all"
_NAMED = re.compile(r"(train|val)-(0\.[0-9]{1,4})")


def split_name(split: str, share: float) -> str:
    """Return the name of a part, which holds the share where it is not the usual one: `train`, `train-0.2`, `all`.

    Raises:
        DatasetError: the share is not from 0 to below 1.
    """
    if not 0 <= share < 1:
        raise DatasetError(f"val_share must be from 0 to below 1, got {share}.")
    if split not in (TRAIN, VAL) or share == DEFAULT_SHARE:
        return split
    if share == 0:
        return WHOLE if split == TRAIN else split
    return f"{split}-{round(share, 4):g}"


def parsed_split(name: str) -> tuple[str, float]:
    """Return split and share that a name stands for, such as `train-0.2`; the inverse of `split_name`."""
    match = _NAMED.fullmatch(name)
    return (match[1], float(match[2])) if match else (name, 0.0 if name == WHOLE else DEFAULT_SHARE)


def counterpart(split: str, trained: str) -> str:
    """Return the split to score on: `split`, or for `val` the rest of the part `trained` (`train-0.2` -> `val-0.2`)."""
    named, share = parsed_split(trained)
    return split_name(VAL, share) if split == VAL and named != trained else split


def part_of(dataset: Dataset, split: str, share: float) -> Dataset:
    """Return the images of `train` or `val` out of all of them.

    An image belongs to `val` by a hash of its key alone, so it stays there when others are added, and a larger share
    holds a smaller one. Where no image is hit, the one with the smallest hash is taken.
    """
    if len(dataset) < 2:
        raise DatasetError(
            f"{dataset.root} must hold 2 images or more to validate on a part of them, got {len(dataset)}. Read split "
            f"{WHOLE!r}, or give a validation split."
        )
    numbers = [uniform_number(sample.key) for sample in dataset.samples]
    smallest, wanted = min(numbers), split == VAL
    pairs = zip(dataset.samples, numbers, strict=True)
    table = SampleTable(sample for sample, number in pairs if (number < share or number == smallest) == wanted)
    if not table:
        raise DatasetError(f"{dataset.root}: a val_share of {share:g} leaves no image to train on.")
    return replace(dataset, samples=table)


def uniform_number(key: str) -> float:
    """Return a number from 0 to below 1 that is always the same for a key, and uniform over keys."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / (1 << 48)


_MOST_NAMES = 12


def relabelled(dataset: Dataset, classes: Sequence[str], source: str) -> Dataset:
    """Return `dataset` with labels that index `classes`, each found by the name of its class.

    Bare numbers are names as well: a split of fewer of them is mapped, one that goes beyond `classes` is refused. A
    name that `classes` lacks and that no image has is passed over.

    Args:
        dataset: a split.
        classes: the list to index, such as that of a cache.
        source: what `classes` is the list of, for messages.

    Raises:
        DatasetError: an image or object has a class that is not in `classes`, or a name stands twice in either list.
    """
    classes = tuple(classes)
    if dataset.classes == classes:
        return dataset
    place = _places(classes, source)
    _places(dataset.classes, _title(dataset))
    used = sorted({label for sample in dataset.samples for label in sample.labels})  # and objects have no other
    unknown = [dataset.classes[label] for label in used if dataset.classes[label] not in place]
    if unknown:
        raise DatasetError(
            f"{_title(dataset)} must have only classes of {source}; {_names(unknown)} {_are(unknown)} not among them. "
            f"Its classes: {_names(dataset.classes)}; those of {source}: {_names(classes)}. Name the classes alike in "
            "both, or read a split that has the same ones."
        )
    new = {label: place[name] for label, name in enumerate(dataset.classes) if name in place}
    if all(new[label] == label for label in used):
        return replace(dataset, classes=classes)
    samples = renumbered(dataset.samples, new)
    return replace(dataset, classes=classes, samples=samples, instances=_Relabelled(dataset.instances, new))


def renumbered(samples: Iterable[Sample], new: Mapping[int, int]) -> SampleTable:
    """Return the samples with label `new[i]` for each label i, in order."""
    return SampleTable(replace(each, labels=tuple(sorted(new[label] for label in each.labels))) for each in samples)


def named_in_order(numbers: Mapping[str, int]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return names sorted, and old number -> new one, of classes that were numbered in order of appearance."""
    names = tuple(sorted(numbers))
    return names, {numbers[name]: place for place, name in enumerate(names)}


def require_labels(dataset: Dataset, remedy: str) -> None:
    """Raise a `DatasetError` unless the split holds an image that has a label; `remedy` ends its message."""
    if not len(dataset):
        raise DatasetError(f"{_title(dataset)} must hold images to be scored on, got none. {remedy}")
    if not any(sample.labels for sample in dataset.samples):
        raise DatasetError(
            f"{_title(dataset)} must have labels to be scored on; none of its {len(dataset)} images has one. {remedy}"
        )


class _Relabelled(Mapping[str, tuple[Instance, ...]]):
    """Objects with other labels, changed as they are read."""

    def __init__(self, instances: Mapping[str, tuple[Instance, ...]], new: Mapping[int, int]) -> None:
        self._instances, self._new = instances, new

    def __getitem__(self, key: str) -> tuple[Instance, ...]:
        return tuple(replace(each, label=self._new[each.label]) for each in self._instances[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._instances)

    def __len__(self) -> int:
        return len(self._instances)


def _places(names: Sequence[str], source: str) -> dict[str, int]:
    place = {name: number for number, name in enumerate(names)}
    if len(place) != len(names):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        raise DatasetError(
            f"{source} must name each class once, so that labels can be told by name; {_names(twice)} "
            f"{_are(twice)} there twice."
        )
    return place


def _title(dataset: Dataset) -> str:
    return f"Split {dataset.split!r} of {dataset.name} in {dataset.root}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(map(repr, names[:_MOST_NAMES])) or "none") + more

"""Samples in columns: a million of them in a few hundred bytes each, handed out one by one as `Sample`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from lfi_pipeline.data.paths import why_unsafe
from lfi_pipeline.data.sample import Sample
from lfi_pipeline.errors import DatasetError

_CHUNK = 8192  # samples; what exists twice while a table is built or walked
_SCHEMA = pa.schema(
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
        return pa.chunked_array([batch.column(name) for batch in self._batches], type=_SCHEMA.field(name).type)

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
            {name: [getattr(sample, name) for sample in samples] for name in _SCHEMA.names}, schema=_SCHEMA
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
    columns = (batch.column(name).to_pylist() for name in _SCHEMA.names)
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

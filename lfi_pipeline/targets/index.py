"""The index: one Parquet part a shard, read in groups of columns when first asked for, into Arrow memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError
from lfi_pipeline.core.io import read_whole
from lfi_pipeline.targets.commits import CommitRecord, index_file, remedy, tar_file
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.tar import member_kinds
from lfi_pipeline.targets.vocabulary import PlannedSample

T = TypeVar("T")


class Column(Sequence[T], Generic[T]):
    """A read-only sequence; equal to any sequence of the same items. Slices are lists."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, length: int) -> None:
        self._length = length

    def _item(self, position: int) -> T:
        raise NotImplementedError

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self._item(i) for i in range(*at.indices(self._length))]
        position = int(at)
        if not -self._length <= position < self._length:
            raise IndexError(f"position must be in 0..{self._length - 1}, got {position}.")
        return self._item(position % self._length)

    def __iter__(self) -> Iterator[T]:
        return map(self._item, range(self._length))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))


class ValueColumn(Column[T]):
    """Strings (or nulls) of an Arrow array."""

    def __init__(self, values: pa.Array) -> None:
        super().__init__(len(values))
        self.arrow = values

    def _item(self, position: int) -> T:
        value: T = self.arrow[position].as_py()
        return value

    def __iter__(self) -> Iterator[T]:
        for first in range(0, len(self), 4096):  # far faster than one by one, and no list of everything
            yield from self.arrow.slice(first, 4096).to_pylist()


class TupleColumn(Column[tuple[int, ...]]):
    """Tuples of integers: `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
        offsets: int64 [S + 1].
        values: int32, of all samples one after another.
    """

    def __init__(self, values: pa.Array) -> None:
        """`values`: an Arrow list array without nulls."""
        super().__init__(len(values))
        self.offsets: npt.NDArray[np.int64] = np.asarray(values.offsets.to_numpy(), dtype=np.int64)
        self.values: npt.NDArray[np.int32] = values.values.to_numpy()

    def _item(self, position: int) -> tuple[int, ...]:
        return tuple(self.values[self.offsets[position] : self.offsets[position + 1]].tolist())


class TarPathColumn(Column[str]):
    """Paths `shards/000000.tar#OFFSET+SIZE`, made when asked for; "" where there is no member."""

    def __init__(self, places: npt.NDArray[np.int64], per_shard: int) -> None:
        """
        Args:
            places: int64 [S, 2], offset and size; -1 where there is none.
            per_shard: samples in one shard.
        """
        super().__init__(len(places))
        self._places, self._per_shard = places, per_shard

    def _item(self, position: int) -> str:
        offset, size = self._places[position].tolist()
        return "" if offset < 0 else f"{tar_file(position // self._per_shard)}#{offset}+{size}"


def joined(parts: list[pa.Array]) -> pa.Array:
    """One contiguous array of all parts; strings with wide offsets where 2 GiB of text would not do."""
    if pa.types.is_string(parts[0].type) and sum(part.nbytes for part in parts) > 2**30:
        parts = [part.cast(pa.large_string()) for part in parts]
    return pa.concat_arrays(parts)


THREADS = 4
"""Threads that read index parts; most of the time goes to the file system and to Arrow, which let go of the lock."""

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("crc32c", pa.uint32()),
        ("labels", pa.list_(pa.int32())),
        ("domain", pa.string()),
        ("caption", pa.string()),
        ("quarantine", pa.string()),
    ]
)
_NULLABLE = {"size", "crc32c", "quarantine"}
MOST_PART_BYTES = 1 << 26
"""Most bytes that one column of an index part takes in memory: 64 kB for each of 1,024 samples."""


def index_schema(spec: TargetSpec, layout: str) -> pa.Schema:
    """Columns of an index part; in the webdataset layout also where each member of a sample lies in the tar."""
    kinds = member_kinds(spec) if layout == "webdataset" else []
    places = [pa.field(f"{kind}.{what}", pa.int64()) for kind in kinds for what in ("offset", "size")]
    return pa.schema([*_SCHEMA, *places])


def index_part(
    plan: Sequence[PlannedSample],
    quarantined: Mapping[int, str],
    image_crc32c: npt.NDArray[np.uint32],
    image_size: npt.NDArray[np.int64] | None,
    members: Mapping[str, npt.NDArray[np.int64]],
) -> bytes:
    """Content of one index part; size, crc32c and places of members are null for a quarantined sample."""
    reasons = [quarantined.get(i) for i in range(len(plan))]
    absent = np.array([reason is not None for reason in reasons], dtype=bool)
    sizes = np.zeros(len(plan), np.int64) if image_size is None else image_size
    columns = {
        "key": pa.array([sample.key for sample in plan], pa.string()),
        "path": pa.array([sample.path for sample in plan], pa.string()),
        "size": pa.array(sizes, pa.int64(), mask=absent | (image_size is None)),
        "crc32c": pa.array(image_crc32c, pa.uint32(), mask=absent),
        "labels": pa.array([list(sample.labels) for sample in plan], pa.list_(pa.int32())),
        "domain": pa.array([sample.domain for sample in plan], pa.string()),
        "caption": pa.array([sample.caption for sample in plan], pa.string()),
        "quarantine": pa.array(reasons, pa.string()),
    }
    for kind, places in members.items():
        for what, values in zip(("offset", "size"), places.T, strict=True):
            columns[f"{kind}.{what}"] = pa.array(np.ascontiguousarray(values), pa.int64(), mask=absent)
    for name, column in columns.items():
        if column.nbytes > MOST_PART_BYTES:
            raise ConfigError(
                f"The {name}s of a shard of {len(plan)} samples must take at most {MOST_PART_BYTES >> 20} MiB, and "
                f"take {column.nbytes >> 20}. Take fewer samples per shard, or shorten them."
            )
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def parse_part(data: bytes, spec: TargetSpec, layout: str, shard: int, columns: Sequence[str]) -> pa.Table:
    """Columns of one index part from its content, checked against what they must be.

    Raises:
        ValueError: the content is not an index part of this shard.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        expected, rows = index_schema(spec, layout), len(spec.shard_range(shard))
        if not file.schema_arrow.equals(expected):
            raise ValueError(f"it has columns {file.schema_arrow.names}, not {expected.names}")
        if file.metadata.num_rows != rows:
            raise ValueError(f"it holds {file.metadata.num_rows} rows, not {rows}")
        if texts := _texts_to_measure(file.metadata, columns, len(spec.dataset.classes)):
            file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts, page_checksum_verification=True)
        table = file.read(columns=list(columns), use_threads=False)
        for name in texts:
            table = table.set_column(table.schema.get_field_index(name), name, _written_out(table[name], name))
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if table.num_rows != rows:
        raise ValueError(f"it holds {table.num_rows} rows, not {rows}")
    for name in columns:
        if name in _SCHEMA.names and name not in _NULLABLE and table[name].null_count:
            raise ValueError(f"column {name} has empty entries")
    return table


def _texts_to_measure(metadata: pq.FileMetaData, columns: Sequence[str], classes: int) -> list[str]:
    """Check the sizes that a part declares, before any column is decompressed.

    Returns:
        Columns of texts that might still grow: a dictionary writes a text once for all rows that have it.

    Raises:
        ValueError: a column is larger than any that is written.
    """
    rows, measured = metadata.num_rows, set()
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            name = chunk.path_in_schema.removesuffix(".list.element")
            if name not in columns:
                continue
            if chunk.total_uncompressed_size > MOST_PART_BYTES or chunk.num_values > rows * max(classes, 1):
                declared = f"{chunk.num_values} values in {chunk.total_uncompressed_size} bytes"
                raise ValueError(f"column {name} says that it holds {declared}, more than {rows} samples can have")
            if chunk.physical_type == "BYTE_ARRAY" and chunk.total_uncompressed_size * rows > MOST_PART_BYTES:
                measured.add(name)
    return sorted(measured)


def _written_out(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Turn a column of dictionaries into texts; raises ValueError where that would be too large."""
    lengths = [pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() for chunk in column.chunks]
    size = sum(length or 0 for length in lengths)
    if size > MOST_PART_BYTES:
        raise ValueError(f"column {name} would take {size} bytes, more than {len(column)} samples can have")
    return column.cast(pa.string())


class TargetIndex:
    """Columns of the index by position; each is read from disk when first asked for, then kept.

    In a cache opened incomplete, positions that are not committed hold "" or 0 or ().
    """

    def __init__(self, root: Path, spec: TargetSpec, layout: str, records: Mapping[int, CommitRecord]) -> None:
        """
        Args:
            root: the cache.
            spec: of the cache.
            layout: of the cache.
            records: commit records by number of the shard, ascending.
        """
        self._root, self._spec, self._layout, self._records = root, spec, layout, records
        self._columns: dict[str, pa.Array] = {}  # read along with another, and not asked for yet

    def __len__(self) -> int:
        return self._spec.dataset.samples

    @cached_property
    def keys(self) -> Sequence[str]:
        """Key of each sample."""
        return ValueColumn(self._column("key"))

    @cached_property
    def source_paths(self) -> Sequence[str]:
        """POSIX path of each image below the data root that the targets were extracted from."""
        return ValueColumn(self._column("path"))

    @cached_property
    def paths(self) -> Sequence[str]:
        """Where each image lies below the store's `data_root`.

        A POSIX path; in the webdataset layout `shards/000000.tar#OFFSET+SIZE` ("" for a quarantined sample).
        """
        if self._layout == "zarr":
            return self.source_paths
        return TarPathColumn(self.image_places, self._spec.samples_per_shard)

    @cached_property
    def labels(self) -> Sequence[tuple[int, ...]]:
        """Indices into the spec's classes; raises CorruptTargetsError where one is none of them."""
        labels, classes = TupleColumn(self._column("labels")), len(self._spec.dataset.classes)
        if len(labels.values) and not 0 <= labels.values.min() <= labels.values.max() < classes:
            raise CorruptTargetsError(f"The index of {self._root} holds labels outside 0..{classes - 1}.")
        return labels

    @cached_property
    def domains(self) -> Sequence[str]:
        """Visual domain of each sample, "" where there is none."""
        return ValueColumn(self._column("domain"))

    @cached_property
    def captions(self) -> Sequence[str]:
        """The text that the words come from."""
        return ValueColumn(self._column("caption"))

    @cached_property
    def reasons(self) -> Sequence[str | None]:
        """Why a sample is quarantined; None where it is not."""
        return ValueColumn(self._column("quarantine"))

    @cached_property
    def image_crc32c(self) -> npt.NDArray[np.uint32]:
        """uint32 [S], crc32c of the image files; 0 where quarantined."""
        return self._numbers("crc32c", 0).astype(np.uint32, copy=False)

    @cached_property
    def image_size(self) -> npt.NDArray[np.int64]:
        """int64 [S], bytes of the image files; -1 where quarantined or not recorded."""
        return self._numbers("size", -1)

    @cached_property
    def image_places(self) -> npt.NDArray[np.int64]:
        """Offset and size of each image in the tar of its shard, int64 [S, 2], -1 where there is none."""
        return np.stack([self._numbers(f"image.{what}", -1) for what in ("offset", "size")], axis=1)

    @cached_property
    def quarantined(self) -> npt.NDArray[np.bool_]:
        """bool [S], True where a sample has no targets because its image could not be used."""
        mask = np.zeros(len(self), dtype=bool)
        mask[[position for record in self._records.values() for position in record.quarantined]] = True
        return mask

    @cached_property
    def committed(self) -> npt.NDArray[np.bool_]:
        """bool [S], True where the sample's shard is committed."""
        mask = np.zeros(len(self), dtype=bool)
        for shard in self._records:
            positions = self._spec.shard_range(shard)
            mask[positions.start : positions.stop] = True
        return mask

    def read_part(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """Read columns of one part, checked against its commit record.

        Raises:
            CorruptTargetsError: the part is missing or damaged.
        """
        path = self._root / index_file(shard)
        try:
            data = read_whole(path)
            complaint = self._records[shard].files[index_file(shard)].complaint(data)
            if complaint:
                raise ValueError(f"it {complaint}")
            return parse_part(data, self._spec, self._layout, shard, columns)
        except (CorruptTargetsError, ValueError) as error:
            raise CorruptTargetsError(f"Cannot read {path}: {error}. {remedy(self._root, shard)}") from error

    def _numbers(self, name: str, absent: int) -> npt.NDArray[np.int64]:
        column = self._column(name)
        values: npt.NDArray[np.int64] = column.fill_null(absent).to_numpy()
        return values

    def _column(self, name: str) -> pa.Array:
        if name not in self._columns:
            group = next((group for group in self._groups() if name in group), [name])
            self._columns |= self._load(group)
        return self._columns.pop(name)

    def _groups(self) -> list[list[str]]:
        """Columns that are read together, because whoever needs one needs the others."""
        places = [f.name for f in index_schema(self._spec, self._layout) if f.name.startswith("image.")]
        return [["key", "labels", "domain", "crc32c", *(places or ["path"])]]

    def _load(self, names: Sequence[str]) -> dict[str, pa.Array]:
        schema, spec = index_schema(self._spec, self._layout), self._spec

        def read(shard: int) -> dict[str, list[pa.Array]]:
            table = self.read_part(shard, names)
            return {name: table[name].chunks for name in names}

        with ThreadPoolExecutor(max_workers=THREADS) as pool:
            tables = list(pool.map(read, self._records))
        columns = {}
        for name in names:
            parts, rows = [], 0
            for shard, chunks in [*zip(self._records, tables, strict=True), (spec.shards, {})]:
                first = min(shard * spec.samples_per_shard, len(self))
                if first > rows:
                    parts.append(_absent(schema.field(name).type, name in _NULLABLE, first - rows))
                own = chunks.pop(name, [])  # so that a column is not held twice while the next is joined
                parts += own
                rows = first + sum(map(len, own))
            columns[name] = joined(parts)
        pa.default_memory_pool().release_unused()
        return columns


def _absent(kind: pa.DataType, nullable: bool, rows: int) -> pa.Array:
    """Return `rows` entries for samples that are not committed: null, "", or an empty list."""
    if nullable or pa.types.is_integer(kind):
        return pa.nulls(rows, kind)
    return pa.repeat(pa.scalar([] if pa.types.is_list(kind) else "", kind), rows)

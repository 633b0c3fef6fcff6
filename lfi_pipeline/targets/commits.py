"""Paths and arrays of a cache, and its commit records: a shard counts once its record is written."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from lfi_pipeline.core.errors import CorruptTargetsError
from lfi_pipeline.core.io import FileRecord, read_whole, seal, unseal
from lfi_pipeline.targets.spec import TargetSpec

MANIFEST = "manifest.json"
SOURCE = "source.json"
VOCABULARY = ("vocabulary.json", "vocabulary.npy")
CLASSES = ("classes.json", "classes.npy")
LAYOUTS = ("zarr", "webdataset")
"""zarr: arrays of all samples, images where they are. webdataset: tar shards that hold the images too."""
SMALL_CHUNK = 32
"""Samples in one inner chunk of the small arrays, where the shard size allows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayLayout:
    """One array of one view.

    Attributes:
        name: its name below the view.
        dtype: numpy name of its type.
        tail: shape of one sample.
        inner: samples in one inner chunk, the unit of reading; divides `shard`.
        shard: samples in one shard, the unit of writing.
        fill: value of what is not there.
    """

    name: str
    dtype: str
    tail: tuple[int, ...]
    inner: int
    shard: int
    fill: int


def array_layouts(spec: TargetSpec) -> dict[str, ArrayLayout]:
    """The arrays of every view, by name."""
    layers, words, shard = len(spec.layers), spec.words_per_sample, spec.samples_per_shard
    small = math.gcd(SMALL_CHUNK, shard)

    def array(name: str, dtype: str, *tail: int, inner: int, fill: int = 0) -> ArrayLayout:
        return ArrayLayout(name=name, dtype=dtype, tail=tail, inner=inner, shard=shard, fill=fill)

    arrays = (
        array("maps", "uint8", layers, words, *spec.grid, inner=1),
        array("scale", "float16", layers, words, inner=small),
        array("words", "int32", words, inner=small, fill=-1),
        array("kept", "float16", layers, words, inner=small),
        array("image_embedding", "float16", spec.embedding_dim, inner=1),
    )
    return {layout.name: layout for layout in arrays}


def array_folder(view: str, array: str) -> str:
    """Folder of one array, relative to the cache."""
    return f"views/{view}/{array}"


def shard_key(layout: ArrayLayout, shard: int) -> str:
    """Name of a shard's file below its array's folder."""
    return ".".join(["c", str(shard), *("0" for _ in layout.tail)])


def index_file(shard: int) -> str:
    """The index part of a shard, relative to the cache."""
    return f"index/{shard:06d}.parquet"


def commit_file(shard: int) -> str:
    """The commit record of a shard, relative to the cache."""
    return f"commits/{shard:06d}.json"


def tar_file(shard: int) -> str:
    """The tar of a shard in the webdataset layout, relative to the cache."""
    return f"shards/{shard:06d}.tar"


def zarr_files(spec: TargetSpec, shard: int) -> dict[str, ArrayLayout]:
    """The array files of a shard in the zarr layout, by path relative to the cache."""
    return {
        f"{array_folder(view, array.name)}/{shard_key(array, shard)}": array
        for view in spec.views
        for array in array_layouts(spec).values()
    }


def shard_files(spec: TargetSpec, layout: str, shard: int) -> set[str]:
    """Every file that a shard's commit record lists, relative to the cache."""
    data = set(zarr_files(spec, shard)) if layout == "zarr" else {tar_file(shard)}
    return {*data, index_file(shard)}


def fixed_files(spec: TargetSpec, layout: str) -> set[str]:
    """Every file that the manifest lists, relative to the cache; beside them it may list `CLASSES`."""
    if layout != "zarr":
        return set(VOCABULARY)
    folders = ["", "views/", *(f"views/{view}/" for view in spec.views)]
    folders += [f"{array_folder(view, array)}/" for view in spec.views for array in array_layouts(spec)]
    return {*VOCABULARY, *(f"{folder}zarr.json" for folder in folders)}


def zarr_metadata(spec: TargetSpec) -> dict[str, bytes]:
    """Content of every `zarr.json`, by path relative to the cache, as zarr-python writes it."""
    import zarr  # slow to import, and readers do not need it
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.core.buffer import Buffer
    from zarr.storage import MemoryStore

    files = {}
    for group in ("", "views/", *(f"views/{view}/" for view in spec.views)):
        kept: dict[str, Buffer] = {}
        zarr.create_group(MemoryStore(kept))
        files[f"{group}zarr.json"] = kept["zarr.json"].to_bytes()
    for layout in array_layouts(spec).values():
        kept = {}
        zarr.create_array(
            MemoryStore(kept),
            shape=(spec.dataset.samples, *layout.tail),
            dtype=layout.dtype,
            chunks=(layout.inner, *layout.tail),
            shards=(layout.shard, *layout.tail),
            compressors=[ZstdCodec(level=spec.codec.level, checksum=False), Crc32cCodec()],
            fill_value=layout.fill,
            chunk_key_encoding={"name": "default", "separator": "."},
        )
        for view in spec.views:
            files[f"{array_folder(view, layout.name)}/zarr.json"] = kept["zarr.json"].to_bytes()
    return files


def parse_records(plain: Any) -> dict[str, FileRecord] | None:
    """Records by file name from parsed JSON; None where it is anything else."""
    if not isinstance(plain, dict):
        return None
    records = {}
    for name, fields in plain.items():
        match fields:
            case {"size": size, "crc32c": str(crc32c)} if len(fields) == 2 and _is_count(size):
                records[name] = FileRecord(size=size, crc32c=crc32c)
            case _:
                return None
    return records


def _is_count(value: Any) -> bool:
    """Whether it is a whole number that fits int64; JSON knows no largest, and no float holds its sums."""
    return type(value) is int and 0 <= value < 2**63


class CheckedStream(io.RawIOBase):
    """Reads a file once, front to back, and says at the end whether it is the recorded one."""

    def __init__(self, path: Path, record: FileRecord) -> None:
        """Raises CorruptTargetsError where the file is missing, cannot be read or has another size."""
        try:
            self._file = path.open("rb")
            size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise CorruptTargetsError(f"Cannot read {path}: {error.strerror or error}.") from error
        self._path, self._record, self._crc = path, record, 0
        if size != record.size:
            self.close()
            raise CorruptTargetsError(f"{path} has {size} bytes, recorded were {record.size}.")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        try:
            data = self._file.read(size)
        except OSError as error:
            raise CorruptTargetsError(f"Cannot read {self._path}: {error.strerror or error}.") from error
        self._crc = google_crc32c.extend(self._crc, data)
        return data

    def finish(self) -> None:
        """Read what is left, and raise CorruptTargetsError unless the whole file was the recorded one."""
        while self.read(2**20):
            pass
        if f"{self._crc:08x}" != self._record.crc32c:
            raise CorruptTargetsError(f"{self._path} has crc32c {self._crc:08x}, recorded was {self._record.crc32c}.")

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitRecord:
    """What one committed shard holds. No time and no host name, so that the same shard gives the same bytes.

    Attributes:
        shard: its number.
        samples: samples in it, quarantined ones included.
        quarantined: reason by position in the data set.
        files: every file of the shard, by path relative to the cache.
        kl_sum: KL(map || decoded) in nats, summed over present rows (rounded to 1e-6).
        kl_rows: number of those rows.
    """

    shard: int
    samples: int
    quarantined: Mapping[int, str]
    files: Mapping[str, FileRecord]
    kl_sum: float
    kl_rows: int

    def to_bytes(self) -> bytes:
        """Content of the record's file."""
        return seal(
            {
                "shard": self.shard,
                "samples": self.samples,
                "quarantined": [[position, self.quarantined[position]] for position in sorted(self.quarantined)],
                "files": {name: asdict(record) for name, record in self.files.items()},
                "kl_sum": round(self.kl_sum, 6),
                "kl_rows": self.kl_rows,
            }
        )

    @classmethod
    def load(cls, root: Path, spec: TargetSpec, layout: str, shard: int) -> CommitRecord:
        """Read one record.

        Raises:
            CorruptTargetsError: it is missing, does not match its checksum, or is not one of this shard.
        """
        path = root / commit_file(shard)
        try:
            return _parse(unseal(read_whole(path), path), path, spec, layout, shard)
        except CorruptTargetsError as error:
            raise CorruptTargetsError(f"{error} {remedy(root, shard)}") from error


def _parse(body: dict[str, Any], path: Path, spec: TargetSpec, layout: str, shard: int) -> CommitRecord:
    """A record from its JSON, every value checked: file names above all, since readers open them."""
    positions = spec.shard_range(shard)
    quarantined, files, kl_sum = body.get("quarantined"), parse_records(body.get("files")), body.get("kl_sum")
    if (
        body.keys() != {"shard", "samples", "quarantined", "files", "kl_sum", "kl_rows"}
        or not all(_is_count(body[name]) for name in ("shard", "samples", "kl_rows"))
        or (body["shard"], body["samples"]) != (shard, len(positions))
        or files is None
        or files.keys() != shard_files(spec, layout, shard)
        or not isinstance(kl_sum, (int, float))
        or not -(2**63) < kl_sum < 2**63
        or not isinstance(quarantined, list)
        or not all(_is_quarantine(entry, positions) for entry in quarantined)
    ):
        raise CorruptTargetsError(f"{path} is not a commit record of shard {shard} of this cache.")
    return CommitRecord(
        shard=shard,
        samples=len(positions),
        quarantined=dict(quarantined),
        files=files,
        kl_sum=kl_sum,
        kl_rows=body["kl_rows"],
    )


def _is_quarantine(entry: Any, positions: range) -> bool:
    match entry:
        case [int(position), str()]:
            return position in positions
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Totals over the committed shards.

    Attributes:
        samples: committed samples, quarantined ones included.
        quarantined: of them without targets.
        bytes_per_sample: committed bytes (all views and the index; in the webdataset layout the images too) over
            samples; 0 where there are none.
        raw_bytes_per_sample: the same maps as plain fp16.
        codec_kl: mean KL(map || decoded) in nats; 0 where there are no rows.
    """

    samples: int
    quarantined: int
    bytes_per_sample: float
    raw_bytes_per_sample: int
    codec_kl: float


def committed_shards(root: Path, spec: TargetSpec) -> list[int]:
    """Numbers of the shards that have a commit record, ascending."""
    folder = root / "commits"
    names = (re.fullmatch(r"(\d{6,})\.json", entry.name) for entry in folder.iterdir()) if folder.is_dir() else ()
    return sorted(number for name in names if name and (number := int(name[1])) < spec.shards)


def summarise(spec: TargetSpec, records: Iterable[CommitRecord]) -> Summary:
    """Add up commit records."""
    samples = quarantined = size = rows = 0
    kl = 0.0
    for record in records:
        samples += record.samples
        quarantined += len(record.quarantined)
        size += sum(file.size for file in record.files.values())
        kl += record.kl_sum
        rows += record.kl_rows
    gh, gw = spec.grid
    return Summary(
        samples=samples,
        quarantined=quarantined,
        bytes_per_sample=size / samples if samples else 0.0,
        raw_bytes_per_sample=2 * len(spec.views) * len(spec.layers) * spec.words_per_sample * gh * gw,
        codec_kl=kl / rows if rows else 0.0,
    )


def remedy(root: Path, shard: int) -> str:
    """What to do about a damaged shard."""
    return f"To make this shard anew, delete {root / commit_file(shard)} and run the same extract command again."

"""Commit records: the one small file that makes a shard true, and what the records add up to."""

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
from lfi_pipeline.targets.layout import commit_file, shard_files
from lfi_pipeline.targets.spec import TargetSpec


def parse_records(plain: Any) -> dict[str, FileRecord] | None:
    """Records by file name from parsed JSON; None where it is anything else."""
    if not isinstance(plain, dict):
        return None
    records = {}
    for name, fields in plain.items():
        match fields:
            case {"size": int(size), "crc32c": str(crc32c)} if len(fields) == 2 and size >= 0:
                records[name] = FileRecord(size=size, crc32c=crc32c)
            case _:
                return None
    return records


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
    """What one committed shard holds. No clock and no host in it: the same shard has the same bytes.

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
        or not all(type(body[name]) is int for name in ("shard", "samples", "kl_rows"))
        or (body["shard"], body["samples"]) != (shard, len(positions))
        or files is None
        or files.keys() != shard_files(spec, layout, shard)
        or not isinstance(kl_sum, (int, float))
        or not math.isfinite(kl_sum)
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
    """What the committed shards add up to.

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

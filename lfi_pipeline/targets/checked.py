"""Recorded files: their records out of JSON that may say anything, and a stream that compares as it reads."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import google_crc32c

from lfi_pipeline.errors import CorruptTargetsError
from lfi_pipeline.targets.files import FileRecord


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

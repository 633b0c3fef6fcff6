"""Files that are either whole or absent, JSON that carries its own checksum, and paths that stay below a root.

The temporary file of a fixed file has a name fixed by its target, so whatever a killed process left behind is
overwritten, and renamed away, by the rerun that writes the same target. Those of shards lie in `claims.STAGING`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from lfi_pipeline.core.errors import CorruptTargetsError, LFIError, OutputWriteError

_IN_TAR = re.compile(r"^(.+\.tar)#([0-9]{1,18})\+([0-9]{1,18})$", re.DOTALL)


def why_unsafe(path: str) -> str | None:
    """Say why `path` is not a POSIX path that stays below the directory it is relative to; None where it is."""
    if not path:
        return "is empty"
    if "\0" in path:
        return "holds a NUL character"
    if path.startswith("/"):
        return "is absolute"
    if ".." in path.split("/"):
        return "has '..' in it"
    return None


def split_tar_path(path: str) -> tuple[str, int, int] | None:
    """Split `shards/a.tar#1536+33122` into tar, offset and size in bytes; None for the path of a plain file."""
    found = _IN_TAR.match(path)
    return (found[1], int(found[2]), int(found[3])) if found else None


def tar_path(tar: str, offset: int, size: int) -> str:
    """Return the path of `size` bytes at `offset` inside `tar`."""
    return f"{tar}#{offset}+{size}"


_SEAL = re.compile(rb'\n "crc32c": "([0-9a-f]{8})"')
_UNSEALED = b'\n "crc32c": "00000000"'


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """What a file must be: its size in bytes and the crc32c of its content (8 hex digits)."""

    size: int
    crc32c: str

    @classmethod
    def of(cls, data: bytes) -> FileRecord:
        """The record of this content."""
        return cls(size=len(data), crc32c=crc32c_hex(data))

    def complaint(self, data: bytes) -> str | None:
        """Say how `data` differs from the record, or None where it does not."""
        if len(data) != self.size:
            return f"has {len(data)} bytes, recorded were {self.size}"
        found = crc32c_hex(data)
        return None if found == self.crc32c else f"has crc32c {found}, recorded was {self.crc32c}"


def crc32c_hex(data: bytes) -> str:
    """crc32c as 8 hex digits."""
    return f"{google_crc32c.value(data):08x}"


def temporary(path: Path) -> Path:
    """Where `write_atomic` gathers the bytes of `path`."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of writing below `path` into one clear error.

    Raises:
        OutputWriteError: the disk is full, the path not writable, ...
    """
    try:
        yield
    except LFIError:
        raise
    except OSError as error:
        raise OutputWriteError(
            f"Cannot write targets at {path}: {error.strerror or error}. Committed shards are safe; free "
            "space or mend the permissions, then run the same command again."
        ) from error


def write_atomic(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Write a whole file or none: temporary file, fsync, rename, fsync of the directory.

    Args:
        path: the file.
        data: its content.
        scratch: the temporary file, on the same file system; `temporary(path)` by default.

    Raises:
        OSError: as the system reports it; the temporary file is removed.
    """
    scratch = scratch or temporary(path)
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_whole(path: Path) -> bytes:
    """Read a file of the cache.

    Raises:
        CorruptTargetsError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptTargetsError(f"Cannot read {path}: {error.strerror or error}.") from error


def seal(body: dict[str, Any]) -> bytes:
    """Readable JSON of `body`, with sorted keys and a `crc32c` field that covers the rest."""
    text = _dump({**body, "crc32c": "00000000"})
    return text.replace(_UNSEALED, _UNSEALED.replace(b"00000000", crc32c_hex(text).encode()), 1)


def unseal(data: bytes, path: Path) -> dict[str, Any]:
    """Check and parse what `seal` wrote; any changed byte is found.

    The checksum is that of the bytes with zeros in its own place, so that nothing need be written again to compare: a
    cache of a million samples has a thousand commit records.

    Raises:
        CorruptTargetsError: the content is not what was sealed.
    """
    body: Any = None
    found = _SEAL.findall(data)
    if len(found) == 1 and found[0] == crc32c_hex(_SEAL.sub(_UNSEALED, data)).encode():
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
    if not isinstance(body, dict):
        raise CorruptTargetsError(f"{path} does not match its checksum.")
    del body["crc32c"]
    return body


def _dump(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()

"""Files that are either whole or absent, JSON that carries its own checksum, and paths that stay below a root.

A temporary file is named after its target, so whatever a killed process left behind is removed by the rerun that writes
the same target. Those of shards lie in `targets.writer.STAGING`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    match = _IN_TAR.match(path)
    return (match[1], int(match[2]), int(match[3])) if match else None


def tar_path(tar: str, offset: int, size: int) -> str:
    """Return the path of `size` bytes at `offset` inside `tar`."""
    return f"{tar}#{offset}+{size}"


_TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]{1,9})-[0-9a-f]{8}\.tmp", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_ABANDONED = 24 * 3600.0  # seconds after which nobody on another machine still writes a file
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
        same_size = len(data) == self.size  # else the checksum is not looked at
        return self.difference(FileRecord(size=len(data), crc32c=crc32c_hex(data) if same_size else ""))

    def difference(self, actual: FileRecord) -> str | None:
        """Say how the record of the file as it is differs from this one, or None where it does not."""
        if actual.size != self.size:
            return f"has {actual.size} bytes, recorded were {self.size}"
        return None if actual == self else f"has crc32c {actual.crc32c}, recorded was {self.crc32c}"


def crc32c_hex(data: bytes) -> str:
    """crc32c as 8 hex digits."""
    return f"{google_crc32c.value(data):08x}"


def temporary(path: Path) -> Path:
    """Return a new place, beside `path`, in which to gather its bytes; its name says which process does so."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{os.urandom(4).hex()}.tmp")


def is_leftover(name: str) -> bool:
    """Whether a file or folder is one of `temporary`, which a killed process may have left."""
    return _TEMPORARY.fullmatch(name) is not None


def clear_leftovers(folder: Path, *, every: bool = False, of: str = "") -> None:
    """Remove what killed processes left in `folder`, not below it.

    Args:
        folder: may be absent.
        of: the name of what was to be written; empty: of anything.
        every: whoever calls this knows that nobody else writes there; otherwise what a living process of this machine,
            or lately one of another, has made stays.
    """
    try:
        entries = list(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        match = _TEMPORARY.fullmatch(entry.name)
        if (
            match
            and entry.name.startswith(f".{of}")
            and (every or not _may_be_in_use(entry, match["host"], int(match["pid"])))
        ):
            with suppress(OSError):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _may_be_in_use(path: Path, host: str, process: int) -> bool:
    if host != _host():
        try:
            return time.time() - path.stat().st_mtime < _ABANDONED
        except OSError:
            return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
        scratch: the temporary file, on the same file system; `temporary(path)` by default, and then those that killed
            processes left of this file are removed.

    Raises:
        OSError: as the system reports it; the temporary file is removed.
    """
    if scratch is None:
        clear_leftovers(path.parent, of=f"{path.name}.")
        scratch = temporary(path)
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):
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


def write_output(path: Path, data: bytes | str, *, make_folder: bool = False) -> None:
    """Write a file that a person asked for, whole or not at all; text as UTF-8.

    Args:
        path: the file.
        data: its content.
        make_folder: make the folders above it.

    Raises:
        OutputWriteError: a full disk, a read-only place, a folder in its place.
    """
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise OutputWriteError(
            f"{path} cannot be written: {error.strerror or error}. Free space or choose another place."
        ) from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gather a folder beside `out`, and put it there, durably and whole, when the context ends without an error.

    What a killed process left of an earlier try is removed. Files get the mode that the user's umask says.

    Raises:
        OSError: as the system reports it, also where `out` holds something.
    """
    clear_leftovers(out.parent, of=out.name)
    folder = temporary(out)
    folder.mkdir(parents=True)
    try:
        yield folder
        umask = os.umask(0)
        os.umask(umask)
        for path in [*folder.rglob("*"), folder]:
            if path.is_file():
                path.chmod(0o666 & ~umask)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            elif path.is_dir():
                sync_directory(path)
        folder.rename(out)
        sync_directory(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sorted_safetensors(data: bytes) -> bytes:
    """Return the same safetensors file with its metadata in order, so that equal content is equal bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    ordered = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(ordered | header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def metadata_of(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file that safetensors has read without complaint."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata


def read_whole(path: Path) -> bytes:
    """Read a file of the cache.

    Raises:
        CorruptTargetsError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptTargetsError(f"Cannot read {path}: {error.strerror or error}.") from error


def exchange(one: Path, other: Path) -> bool:
    """Let two directories of one file system change places in one step; False where the system cannot.

    Raises:
        OSError: one of them is not there, or may not be renamed.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(error, os.strerror(error), str(one))


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time run the block, where the file system can lock `folder`; a dead process frees it."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
    seals = _SEAL.findall(data)
    if len(seals) == 1 and seals[0] == crc32c_hex(_SEAL.sub(_UNSEALED, data)).encode():
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

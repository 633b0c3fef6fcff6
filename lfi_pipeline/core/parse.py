"""JSON and TOML from outside, read with limits on size and depth; and checksums of the files of a run or export."""

from __future__ import annotations

import json
import os
import stat
import tomllib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from lfi_pipeline.core.errors import CorruptTargetsError, LFIError, OutputWriteError, RunError
from lfi_pipeline.core.io import FileRecord, is_leftover, one_at_a_time, seal, unseal, why_unsafe, write_atomic

MAX_BYTES = 1 << 26
"""Bytes of a file of settings, metrics or results; the largest known has a hundredth of it."""
MAX_DEPTH = 64
"""Objects and lists inside each other. Whatever walks parsed values may recurse this deep."""
MAX_TOML_BYTES = 1 << 20
_MAX_TOML_DOTS = 1 << 14  # tomllib's time grows with the square of the length of a dotted key
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"


def read_json(path: Path, *, error: type[LFIError], max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file, with or without a byte order mark.

    Raises:
        LFIError: of class `error`: it cannot be read, or as `parse_json`; names the file.
    """
    return parse_json(read_limited(path, error=error, max_bytes=max_bytes), str(path), error=error)


def parse_json(data: bytes | str, source: str, *, error: type[LFIError], max_bytes: int = MAX_BYTES) -> Any:
    """Parse JSON; NaN and infinities pass, as Python writes them.

    Args:
        data: UTF-8, with or without a byte order mark.
        source: what to name in an error.
        error: class of the error to raise.
        max_bytes: how long it may be.

    Raises:
        LFIError: of class `error`: not JSON in UTF-8, too long, lists and objects deeper than `MAX_DEPTH`, or an
            integer of thousands of digits.
    """
    return _parsed(json.loads, data, source, "JSON", error, max_bytes)


def parse_toml(data: bytes | str, source: str, *, error: type[LFIError]) -> dict[str, Any]:
    """Parse TOML of at most `MAX_TOML_BYTES`; arguments and errors as `parse_json`."""
    table: dict[str, Any] = _parsed(_toml, data, source, "TOML", error, MAX_TOML_BYTES)
    return table


def read_limited(path: Path, *, error: type[LFIError], max_bytes: int = MAX_BYTES, gzipped: bool = False) -> bytes:
    """Return the bytes of a plain file, never more than `max_bytes`.

    Args:
        path: the file.
        error: class of the error to raise.
        max_bytes: of the content, unpacked.
        gzipped: unpack a file that begins like one of gzip.

    Raises:
        LFIError: of class `error`: it cannot be read, is no plain file, is too large, or is damaged gzip.
    """
    try:
        # Opened without blocking: a named pipe in place of a file would otherwise be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise error(f"{path} must be a file, and is a directory or a device.")
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as cause:
        if isinstance(cause, LFIError):
            raise
        raise error(f"{path}: {getattr(cause, 'strerror', None) or cause}.") from cause
    if gzipped and content.startswith(_GZIP):
        content = _unpacked(content, path, error, max_bytes)
    if len(content) > max_bytes:
        raise error(f"{path} must be of at most {max_bytes} bytes, got more.")
    return content


def _unpacked(content: bytes, path: Path, error: type[LFIError], max_bytes: int) -> bytes:
    parts, left = [], max_bytes + 1
    try:
        while content and left > 0:  # a gzip file may be several, one behind the other
            unpacker = zlib.decompressobj(wbits=31)
            part = unpacker.decompress(content, left)
            if not unpacker.eof and len(part) < left:
                raise error(f"{path} is gzip that was cut off. Fetch or write it again.")
            parts.append(part)
            left -= len(part)
            content = unpacker.unused_data
    except zlib.error as cause:
        raise error(f"{path} is damaged gzip: {cause}. Fetch or write it again.") from cause
    return b"".join(parts)


def _parsed(
    parse: Callable[[str], Any], data: bytes | str, source: str, form: str, error: type[LFIError], max_bytes: int
) -> Any:
    if len(data) > max_bytes:
        raise error(f"{source} must be {form} of at most {max_bytes} bytes, got {len(data)}.")
    try:
        text = data.removeprefix("\ufeff") if isinstance(data, str) else data.removeprefix(_BOM).decode()
        value = parse(text)
    except RecursionError as cause:
        raise error(f"{source} must be {form} with at most {MAX_DEPTH} levels, got more.") from cause
    except (ValueError, MemoryError) as cause:  # not UTF-8, not of the form, an integer of 5000 digits
        raise error(f"{source} must be {form} in UTF-8: {_short(cause)}.") from cause
    if _deeper(value, MAX_DEPTH):
        raise error(f"{source} must be {form} with at most {MAX_DEPTH} levels, got more.")
    return value


def _toml(text: str) -> dict[str, Any]:
    if any(line.count(".") > _MAX_TOML_DOTS for line in text.splitlines()):
        raise ValueError("a line has too many dots")
    return tomllib.loads(text)


def _deeper(value: object, levels: int) -> bool:
    """Whether lists and objects of `value` lie more than `levels` deep; one level at a time, never recursing."""
    level = [value]
    for _ in range(levels + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _short(cause: BaseException) -> str:
    text = str(cause).partition("\n")[0]
    return text if len(text) <= 200 else f"{text[:200]}..."


RECORD = "checksums.json"
_FORMAT = "lfi-checksums"
_CHUNK = 1 << 24
_LEVELS = 2  # folders between a file and the record that may name it
_REMEDY = "Restore it from a copy, or make it again: a file that changed by itself cannot be trusted."

Records = dict[str, list[FileRecord]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that is wrong with a cache, a run or an export.

    Attributes:
        shard: number of the shard, or None for a file of the whole.
        file: path relative to the folder (of an image: below the data root).
        sample: position of the damaged sample, where the damage can be pinned to one.
        message: what is wrong, and the remedy.
    """

    shard: int | None
    file: str
    sample: int | None
    message: str


def verify_run(path: Path) -> list[Fault]:
    """Compare every file of a finished run, or of an export, with its checksum; empty where all hold.

    Files that were put there by others are not looked at.

    Raises:
        RunError: `path` is no directory.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise RunError(f"{path} must be a run or an export, and is no directory.")
    try:
        records = recorded(path)
    except RunError as error:
        return [Fault(shard=None, file=RECORD, sample=None, message=str(error))]
    if records is None:
        message = (
            "There are no checksums: the run is not finished, the record was deleted, or an earlier release made this. "
            "A run that is not finished goes on with the command that it was started with."
        )
        return [Fault(shard=None, file=RECORD, sample=None, message=message)]
    faults = []
    for name, allowed in sorted(records.items()):
        try:
            complaint = _complaint(_record_of(path / name), allowed)
        except OSError as error:
            complaint = f"cannot be read: {error.strerror or error}"
        if complaint:
            faults.append(Fault(shard=None, file=name, sample=None, message=f"The file {complaint}. {_REMEDY}"))
    return faults


def seal_folder(folder: Path, pending: Mapping[str, bytes] | None = None, *, leave_out: frozenset[str]) -> None:
    """Record every file below `folder`.

    Args:
        folder: a run or an export.
        pending: content of files that are about to be written, by path below the folder.
        leave_out: paths of files that come and go.

    Raises:
        OSError: as the system reports it.
    """
    files = {name: [_record_of(folder / name)] for name in _files(folder) if name not in leave_out}
    _write(folder, files | {name: [FileRecord.of(data)] for name, data in (pending or {}).items()})


def unseal_folder(folder: Path) -> None:
    """Forget the checksums of a folder whose files are about to change. Raises OSError."""
    (folder / RECORD).unlink(missing_ok=True)


def write_recorded(folder: Path, name: str, data: bytes) -> None:
    """Write a file of a run, whole or not at all, and its checksum where the run has a record.

    Args:
        folder: the run.
        name: path of the file below it; folders are made.
        data: its content.

    Raises:
        OutputWriteError: it cannot be written; the old file stands.
        RunError: the record is damaged.
    """
    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder):
            records = recorded(folder)
            if records is not None:
                before = records.get(name, [])
                _write(folder, records | {name: [*before, FileRecord.of(data)]})
            write_atomic(path, data)
            if records is not None:
                _write(folder, records | {name: [FileRecord.of(data)]})
    except OSError as error:
        if isinstance(error, LFIError):
            raise
        raise OutputWriteError(
            f"{path} cannot be written: {error.strerror or error}. Free space or mend the permissions, then run the "
            "same command again."
        ) from error


def read_checked(path: Path, *, error: type[LFIError] = RunError, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file and compare it with the record of its folder, or of one above, where that names it.

    Raises:
        LFIError: of class `error`: it cannot be read or is too large.
        RunError: it is not what was written, or the record is damaged.
    """
    data = read_limited(path, error=error, max_bytes=max_bytes)
    require_unchanged(path, data)
    return data


def require_unchanged(path: Path, data: bytes) -> None:
    """Compare the content of `path` with the record of its folder, or of one above, where that names it.

    Raises:
        RunError: it is not what was written, or the record is damaged.
    """
    folder = path.absolute().parent
    for _ in range(_LEVELS):
        records = recorded(folder)
        if records is not None:
            allowed = records.get(path.absolute().relative_to(folder).as_posix())
            complaint = allowed and _complaint(FileRecord.of(data), allowed)
            if complaint:
                raise RunError(f"{path} is damaged: it {complaint}. {_REMEDY}")
            return
        folder = folder.parent


def recorded(folder: Path) -> Records | None:
    """Return the records that each file of `folder` may match, by path below it; None where there is no `RECORD`.

    Raises:
        RunError: the record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        body = unseal(read_limited(path, error=RunError), path)
    except CorruptTargetsError as error:
        raise RunError(f"{error} {_REMEDY}") from error
    files = body.get("files")
    if body.get("format") != _FORMAT or not isinstance(files, dict):
        raise RunError(f"{path} must hold checksums of files, got something else. {_REMEDY}")
    return {name: _checksums_parsed(name, each, path) for name, each in files.items()}


def _checksums_parsed(name: str, records: Any, path: Path) -> list[FileRecord]:
    try:
        parsed = [FileRecord(size=each["size"], crc32c=each["crc32c"]) for each in records]
        if why_unsafe(name) or not parsed:
            raise ValueError
        return parsed
    except (TypeError, KeyError, ValueError) as error:
        raise RunError(f"{path} has a checksum that cannot be read, of {name!r}. {_REMEDY}") from error


def _write(folder: Path, records: Records) -> None:
    files = {name: [asdict(record) for record in each] for name, each in records.items()}
    write_atomic(folder / RECORD, seal({"format": _FORMAT, "files": files}))


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != RECORD and not is_leftover(path.name):
            yield path.relative_to(folder).as_posix()


def _record_of(path: Path) -> FileRecord:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), google_crc32c.extend(crc, chunk)
    return FileRecord(size=size, crc32c=f"{crc:08x}")


def _complaint(record: FileRecord, allowed: list[FileRecord]) -> str | None:
    return None if record in allowed else allowed[-1].difference(record)

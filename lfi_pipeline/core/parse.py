"""JSON and TOML that somebody else wrote: one reader of each, with limits on size, depth and digits."""

from __future__ import annotations

import json
import os
import stat
import tomllib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import LFIError

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


def read_toml(path: Path, *, error: type[LFIError]) -> dict[str, Any]:
    """Read a TOML file of at most `MAX_TOML_BYTES`. Raises as `read_json`."""
    return parse_toml(read_limited(path, error=error, max_bytes=MAX_TOML_BYTES), str(path), error=error)


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

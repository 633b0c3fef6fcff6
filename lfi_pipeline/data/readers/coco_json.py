"""Read the lists of a COCO file piece by piece, so that half a gigabyte of annotations is never in memory at once.

A piece holds whole records. Where one ends is told by brackets outside of strings, which numpy finds for megabytes at a
time; what a record says is left to a JSON parser.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.parse import MAX_DEPTH

_BLOCK = 1 << 22  # bytes
_LARGEST_RECORD = 1 << 26  # bytes
_LARGEST_FILE = 1 << 36  # bytes, unpacked
_BOM = b"\xef\xbb\xbf"
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_KEY = re.compile(rb'"((?:[^"\\]|\\.){1,200})"\s*:\s*\Z', re.DOTALL)
_KEEP = bytes(each in b'"{}[]' for each in range(256))
_DEPTH = np.zeros(256, np.int32)
_DEPTH[[*b"{["]] = 1
_DEPTH[[*b"}]"]] = -1


class Piece(NamedTuple):
    """Some records of a list, as JSON without the list's brackets; empty text for an empty list."""

    name: str
    text: bytes


def stream_lists(path: Path, wanted: frozenset[str]) -> Iterator[Piece]:
    """Yield the lists `wanted` of the object in a JSON file, in their order, in pieces of some megabytes.

    The file may be packed with gzip and begin with a byte order mark.

    Raises:
        DatasetError: it cannot be read, is no JSON object, is cut off, or nests deeper than `MAX_DEPTH`.
    """
    try:
        with path.open("rb") as raw:
            start = raw.read(2)
            raw.seek(0)
            with contextlib.nullcontext(raw) if start != b"\x1f\x8b" else gzip.GzipFile(fileobj=raw) as source:
                yield from _Splitter(path, wanted).pieces(source)
    except (OSError, EOFError, zlib.error) as error:  # gzip's own are OSError and EOFError
        raise DatasetError(f"{path}: {getattr(error, 'strerror', None) or error}.") from error


class _Splitter:
    """One pass over one file."""

    def __init__(self, path: Path, wanted: frozenset[str]) -> None:
        self.path, self.wanted = path, wanted
        self.depth = 0
        self.name: str | None = None  # of the list that is open, where it is wanted
        self.ended = False

    def pieces(self, source: IO[bytes] | gzip.GzipFile) -> Iterator[Piece]:
        rest, begun, total = b"", False, 0
        while block := source.read(_BLOCK):
            total += len(block)
            buffer = rest + block
            if not begun:
                buffer = buffer.removeprefix(_BOM).lstrip()
                if not buffer:
                    continue
                begun = True
                if not buffer.startswith(b"{"):
                    raise self._wrong(f"a JSON object, got {buffer[:20]!r}")
            if total > _LARGEST_FILE:
                raise self._wrong(f"of at most {_LARGEST_FILE} bytes")
            if buffer.endswith(b"\\"):  # half of an escape
                buffer += source.read(1)
            used = yield from self._scan(buffer)
            rest = buffer[used:]
            if len(rest) > _LARGEST_RECORD:
                raise self._wrong(f"a file whose records have at most {_LARGEST_RECORD} bytes, got a longer one")
        if not begun:
            raise self._wrong("a JSON object, got an empty file")
        if not self.ended:
            raise self._wrong("a whole file in JSON, and is cut off. Fetch or write it again")
        if rest.strip():
            raise self._wrong(f"one JSON object, and goes on behind it with {rest.strip()[:20]!r}")

    def _scan(self, buffer: bytes) -> Generator[Piece, None, int]:
        """Yield the pieces of `buffer` and return how many of its bytes are done."""
        if self.ended:
            return 0
        at, depths, closing = self._brackets(buffer)
        within = np.flatnonzero(closing & (depths <= 2))
        if not len(within):
            return 0
        used = int(at[within[-1]]) + 1
        start = 0
        opening = ~closing & (depths == 2)
        for i in np.flatnonzero((opening | (closing & (depths <= 1))) & (at < used)).tolist():
            place, depth = int(at[i]), int(depths[i])
            if opening[i]:
                self.name = self._key(buffer, start, place)
                start = place + 1
            else:
                if self.name is not None:
                    yield Piece(self.name, _trimmed(buffer[start:place]))
                self.name, start = None, place + 1
                if depth == 0:
                    self.ended = True
                    self.depth = 0
                    return place + 1
        if self.name is not None:
            yield Piece(self.name, _trimmed(buffer[start:used]))
        self.depth = int(depths[within[-1]])
        return used

    def _brackets(self, buffer: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return place, depth behind it and whether it closes, of each bracket outside of strings."""
        plain = _ESCAPED.sub(b"  ", buffer) if b"\\" in buffer else buffer
        at = np.flatnonzero(np.frombuffer(plain.translate(_KEEP), np.bool_))
        letters = np.frombuffer(plain, np.uint8)[at]
        quotes = letters == ord('"')
        outside = ~quotes & (np.cumsum(quotes, dtype=np.int32) % 2 == 0)
        at, letters = at[outside], letters[outside]
        steps = _DEPTH[letters]
        depths = self.depth + np.cumsum(steps, dtype=np.int32)
        if len(depths) and int(depths.max()) > MAX_DEPTH:
            raise self._wrong(f"JSON with at most {MAX_DEPTH} levels, got more")
        closing = steps < 0
        over = np.flatnonzero(depths <= 0)
        if len(over):  # nothing behind the end of the object counts
            at, depths, closing = at[: over[0] + 1], depths[: over[0] + 1], closing[: over[0] + 1]
        return at, depths, closing

    def _key(self, buffer: bytes, start: int, place: int) -> str | None:
        found = _KEY.search(buffer, max(start, place - 1000), place)
        name = found[1].decode("utf-8", "replace") if found else ""
        if name in self.wanted and buffer[place : place + 1] != b"[":
            raise self._wrong(f"a file whose {name!r} is a list, got an object")
        return name if name in self.wanted else None

    def _wrong(self, what: str) -> DatasetError:
        return DatasetError(f"{self.path} must be {what}.")


def _trimmed(text: bytes) -> bytes:
    """Strip what separates records: a piece begins behind one and may end before the next."""
    text = text.strip()
    return text.removeprefix(b",").removesuffix(b",").strip()

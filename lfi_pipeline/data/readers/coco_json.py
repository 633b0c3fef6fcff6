"""Read the lists of a COCO file piece by piece, so that half a gigabyte of annotations is never in memory at once.

A piece holds whole records. Where one ends is seen by brackets outside of strings, which numpy finds for megabytes at a
time; what a record says is left to a JSON parser.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.parse import MAX_DEPTH

T = TypeVar("T")
_FAR = 1 << 62
_MOST_NAMED = 3


class Faults:
    """What was left out of a file, by reason."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._counts: dict[str, int] = {}
        self._named: dict[str, list[str]] = {}

    def add(self, reason: str, record: object, count: int = 1) -> None:
        """Count a fault; `reason` ends the sentence «3 ...», `record` tells which one."""
        self._counts[reason] = self._counts.get(reason, 0) + count
        named = self._named.setdefault(reason, [])
        if len(named) < _MOST_NAMED:
            named.append(_short(record))

    def lines(self) -> tuple[str, ...]:
        """Return a line for each reason: how many, and the first few."""
        lines = []
        for reason, count in self._counts.items():
            more = ", ..." if count > len(self._named[reason]) else ""
            lines.append(f"{self.path.name}: {count} {reason} ({', '.join(self._named[reason])}{more})")
        return tuple(lines)


_Id = Annotated[int, msgspec.Meta(ge=-_FAR, le=_FAR)]
_Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
_Side = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
_Length = Annotated[float, msgspec.Meta(gt=-1e9, lt=1e9)]


class Image(msgspec.Struct):
    """An entry of `images`; height and width are 0 where only the image itself tells."""

    id: _Id
    file_name: _Text
    height: _Side
    width: _Side
    domain: str = ""


class Category(msgspec.Struct):
    """An entry of `categories`."""

    id: _Id
    name: _Text


class Caption(msgspec.Struct):
    """An entry of a captions file's `annotations`."""

    image_id: _Id
    caption: _Text
    id: _Id = _FAR


class Object(msgspec.Struct):
    """An entry of an instances file's `annotations`; a record without a box or segmentation has an empty one."""

    image_id: _Id
    category_id: _Id
    bbox: tuple[_Length, _Length, _Length, _Length]
    segmentation: msgspec.Raw = msgspec.Raw(b"")
    id: _Id = _FAR
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    area: float | None = None


@dataclass(slots=True)
class Ids:
    """Ids of any kind as integers: numbers as they are, also as text or with `.0`; other text is numbered below all."""

    texts: dict[str, int] = field(default_factory=dict)

    def of(self, value: object) -> int | None:
        """Return the integer for an id; None for what is none."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int:
            return value if abs(value) < _FAR else None
        if not isinstance(value, str) or not value.strip():
            return None
        text = value.strip()
        digits = text.removeprefix("-")
        if digits.isascii() and digits.isdigit() and len(digits) < 19 and (digits == "0" or digits[0] != "0"):
            return int(text)
        return self.texts.setdefault(text, len(self.texts) - 2 * _FAR)


class Records(Generic[T]):
    """Decodes the records of one list.

    Args:
        kind: struct that a clean record fits.
        mend: makes one from any other object, or says what is wrong with it.
        faults: where records that cannot be mended are counted.
    """

    def __init__(self, kind: type[T], mend: Callable[[dict[str, Any]], T | str], faults: Faults) -> None:
        self._decode = msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]
        self._mend, self._faults = mend, faults

    def read(self, text: bytes) -> Sequence[T]:
        """Return the records of a piece.

        Raises:
            DatasetError: the text is no JSON.
        """
        try:
            return self._decode(b"[" + text + b"]")
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return list(self._each(text))

    def _each(self, text: bytes) -> Iterator[T]:
        try:
            records = json.loads(b"[" + text + b"]")  # takes NaN as well
        except (ValueError, RecursionError) as error:  # no JSON, not UTF-8, a number of 5000 digits
            raise DatasetError(f"{self._faults.path} must be JSON in UTF-8: {_short(str(error))}.") from error
        for record in records:
            made = self._mend(record) if isinstance(record, dict) else "records left out, which are no objects"
            if isinstance(made, str):
                self._faults.add(made, record)
            else:
                yield made


def image_of(record: dict[str, Any], ids: Ids, domain_field: str = "") -> Image | str:
    """Make an image of any record, or say what is wrong with it."""
    number, name = ids.of(record.get("id")), record.get("file_name")
    if number is None:
        return "images left out, whose id is missing or no number or text"
    if not isinstance(name, str) or not is_plain_text(name):
        return "images left out, whose file_name is missing or no text"
    domain = record.get(domain_field) if domain_field else None
    return Image(
        number,
        name,
        _length(record.get("height")),
        _length(record.get("width")),
        str(domain) if domain is not None and is_plain_text(str(domain)) else "",
    )


def category_of(record: dict[str, Any], ids: Ids) -> Category | str:
    """Make a category of any record, or say what is wrong with it."""
    number, name = ids.of(record.get("id")), record.get("name")
    if number is None or not isinstance(name, str) or not is_plain_text(name):
        return "categories left out, without an id or a name"
    return Category(number, name)


def caption_of(record: dict[str, Any], ids: Ids) -> Caption | str:
    """Make a caption of any record, or say what is wrong with it."""
    image, text = ids.of(record.get("image_id")), record.get("caption")
    if image is None:
        return "captions left out, whose image_id is missing or no number or text"
    if not isinstance(text, str) or not is_plain_text(text):
        return "captions left out, which are missing or no text"
    number = ids.of(record.get("id"))
    return Caption(image, text, _FAR if number is None else number)


def object_of(record: dict[str, Any], ids: Ids) -> Object | str:
    """Make an object of any record, or say what is wrong with it."""
    image, category = ids.of(record.get("image_id")), ids.of(record.get("category_id"))
    if image is None or category is None:
        return "objects left out, without an image_id or a category_id"
    number, area, crowd = ids.of(record.get("id")), record.get("area"), record.get("iscrowd", 0)
    segmentation = record.get("segmentation")
    return Object(
        image,
        category,
        _box(record.get("bbox")),
        msgspec.Raw(b"" if segmentation is None else json.dumps(segmentation).encode()),
        _FAR if number is None else number,
        int(crowd in (1, "1")),  # True and 1.0 are equal to 1
        _number(area),
    )


def is_plain_text(text: str) -> bool:
    """Whether `text` is not blank and can be written as UTF-8."""
    return bool(text.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _length(value: object) -> int:
    """Return a height or width in pixels; 0 for what is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 < value < 1 << 31 else 0


def _number(value: object) -> float | None:
    return float(value) if _is_number(value) else None  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # type: ignore[arg-type]  # NaN is not less


def _box(value: object) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        return (0.0, 0.0, 0.0, 0.0)
    left, top, width, height = map(float, value)
    return (left, top, width, height)


def _short(record: object) -> str:
    if isinstance(record, dict) and record.get("id") is not None:
        record = f"id {record['id']!r}"
    text = record if isinstance(record, str) else repr(record)
    return text if len(text) <= 120 else f"{text[:120]}..."


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


class MicroBatch(NamedTuple):
    """Some records of a list, as JSON without the list's brackets; empty text for an empty list."""

    name: str
    text: bytes


def stream_lists(path: Path, wanted: frozenset[str]) -> Iterator[MicroBatch]:
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

    def pieces(self, source: IO[bytes] | gzip.GzipFile) -> Iterator[MicroBatch]:
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

    def _scan(self, buffer: bytes) -> Generator[MicroBatch, None, int]:
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
                    yield MicroBatch(self.name, _trimmed(buffer[start:place]))
                self.name, start = None, place + 1
                if depth == 0:
                    self.ended = True
                    self.depth = 0
                    return place + 1
        if self.name is not None:
            yield MicroBatch(self.name, _trimmed(buffer[start:used]))
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
        match = _KEY.search(buffer, max(start, place - 1000), place)
        name = match[1].decode("utf-8", "replace") if match else ""
        if name in self.wanted and buffer[place : place + 1] != b"[":
            raise self._wrong(f"a file whose {name!r} is a list, got an object")
        return name if name in self.wanted else None

    def _wrong(self, what: str) -> DatasetError:
        return DatasetError(f"{self.path} must be {what}.")


def _trimmed(text: bytes) -> bytes:
    """Strip what separates records: a piece begins behind one and may end before the next."""
    text = text.strip()
    return text.removeprefix(b",").removesuffix(b",").strip()

"""Records of COCO's form as tools write them: what is unambiguous is read, what is not is counted and left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from lfi_pipeline.core.errors import DatasetError

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
        found = []
        for reason, count in self._counts.items():
            more = ", ..." if count > len(self._named[reason]) else ""
            found.append(f"{self.path.name}: {count} {reason} ({', '.join(self._named[reason])}{more})")
        return tuple(found)


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
    """Ids of any kind as integers: a number is itself, as text or with `.0` too; other text is numbered below all."""

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

"""Frozen dataclasses to plain JSON and back, and typed access to JSON that somebody else wrote."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lfi_pipeline.core.errors import ConfigError, RunError
from lfi_pipeline.core.parse import parse_json, read_checked

T = TypeVar("T")


def check_types(record: object) -> None:
    """Check every field of a dataclass instance against its annotation.

    Raises:
        ConfigError: a field holds a value of another type, or one outside its `Literal`; names the field.
    """
    for name, kind in get_type_hints(type(record)).items():
        _check(kind, getattr(record, name), f"{type(record).__name__}.{name}")


def to_plain(value: Any, kind: Any) -> Any:
    """Turn a value annotated `kind` into dicts, lists, strings and numbers (floats as `kind` says)."""
    if dataclasses.is_dataclass(kind):
        return {name: to_plain(getattr(value, name), inner) for name, inner in get_type_hints(kind).items()}
    if get_origin(kind) is tuple:
        return [to_plain(item, inner) for item, inner in zip(value, _item_kinds(kind, len(value)), strict=True)]
    return float(value) if kind is float else value


def from_plain(kind: type[T], value: Any, where: str = "") -> T:
    """Build the dataclass `kind` from what `to_plain` made of it.

    Args:
        kind: a dataclass whose fields are int, float, str, Literal, tuple or further such dataclasses.
        value: the parsed JSON.
        where: dotted path of `value`, for the messages.

    Raises:
        ConfigError: a field is missing, unknown, or of another type; names the field.
    """
    built: T = _build(kind, value, where)
    return built


def plain_differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """List, one line a field, where two plain values differ: `"teacher.tag: 'a' != 'b'"`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lines = []
        for name in sorted(ours.keys() | theirs.keys()):
            path = f"{where}.{name}" if where else name
            lines += plain_differences(ours.get(name), theirs.get(name), path)
        return lines
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        lines = [
            line
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
            for line in plain_differences(a, b, f"{where}[{i}]")
        ]
        return lines if len(lines) <= 4 else [*lines[:4], f"{where}: and {len(lines) - 4} more items differ"]
    return [] if ours == theirs else [f"{where}: {plain_short(ours)} != {plain_short(theirs)}"]


def plain_short(value: Any) -> str:
    """Show a plain value in a message, whatever its size."""
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} items"
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _item_kinds(kind: Any, count: int) -> tuple[Any, ...]:
    arguments = get_args(kind)
    return (arguments[0],) * count if arguments[-1] is Ellipsis else arguments


def _check(kind: Any, value: Any, where: str) -> None:
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value not in choices:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    elif get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            raise ConfigError(f"{where} must be a tuple, got {type(value).__name__}.")
        kinds = _item_kinds(kind, len(value))
        if len(kinds) != len(value):
            raise ConfigError(f"{where} must have {len(kinds)} items, got {len(value)}.")
        for i, (inner, item) in enumerate(zip(kinds, value, strict=True)):
            _check(inner, item, f"{where}[{i}]")
    else:
        allowed = (int, float) if kind is float else (kind,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{where} must be {kind.__name__}, got {plain_short(value)}.")


def _build(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where or 'the record'} must be an object, got {plain_short(value)}.")
        hints = get_type_hints(kind)
        prefix = f"{where}." if where else ""
        for name in value.keys() - hints.keys():
            raise ConfigError(f"unknown field {prefix}{name}.")
        for name in hints:
            if name not in value:
                raise ConfigError(f"missing field {prefix}{name}.")
        fields = {name: _build(inner, value[name], f"{prefix}{name}") for name, inner in hints.items()}
        return kind(**fields)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list, got {plain_short(value)}.")
        kinds = _item_kinds(kind, len(value))
        if len(kinds) != len(value):
            raise ConfigError(f"{where} must have {len(kinds)} items, got {len(value)}.")
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_build(inner, item, f"{where}[{i}]") for i, (inner, item) in pairs)
    _check(kind, value, where)
    try:
        return float(value) if kind is float else value
    except OverflowError as error:  # JSON knows no largest integer
        raise ConfigError(f"{where} must be a number that a float can hold, got {plain_short(value)}.") from error


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object, where it came from, and the way down to it.

    Attributes:
        origin: what to name in an error, a path or a path with a line number.
        values: the parsed object.
        prefix: the dotted way to this object inside the file, "" at its top.
    """

    origin: str
    values: Mapping[str, Any]
    prefix: str = ""

    @classmethod
    def parse(cls, text: str, origin: str) -> Fields:
        """Parse one JSON object.

        Raises:
            RunError: `text` is not JSON, or not an object.
        """
        values = parse_json(text, origin, error=RunError)
        if not isinstance(values, dict):
            raise RunError(f"{origin} must hold a JSON object, got {type(values).__name__}.")
        return cls(origin, values)

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Read one JSON file.

        Raises:
            RunError: the file cannot be read or is not a JSON object.
        """
        return cls.parse(read_text(path), str(path))

    def wrong(self, name: str, wanted: str) -> RunError:
        """The error to raise for a field that is missing or of the wrong type."""
        shown = repr(self.values[name])[:80] if name in self.values else "nothing"
        return RunError(f"{self.origin}: field {self.prefix + name!r} must be {wanted}, got {shown}.")

    def text(self, name: str) -> str:
        """A string."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def text_or(self, name: str, default: str) -> str:
        """A string; `default` where the field is missing or null."""
        return default if self.values.get(name) is None else self.text(name)

    def integer(self, name: str) -> int:
        """A whole number of at least 0."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(name, "a whole number of at least 0")
        return value

    def number(self, name: str) -> float:
        """A number; NaN and infinities pass, because a run may well have diverged."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        try:
            return float(value)
        except OverflowError as error:  # JSON knows no largest integer
            raise self.wrong(name, "a number that a float can hold") from error

    def number_or_none(self, name: str) -> float | None:
        """A number; None where the field is missing or null."""
        return None if self.values.get(name) is None else self.number(name)

    def share(self, name: str) -> float:
        """A number in [0, 1]."""
        value = self.number(name)
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise self.wrong(name, "a number in [0, 1]")
        return value

    def share_or_none(self, name: str) -> float | None:
        """A number in [0, 1]; None where the field is missing or null."""
        return None if self.values.get(name) is None else self.share(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of strings")
        return tuple(value)

    def child(self, name: str) -> Fields:
        """An object inside this one."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(self.origin, value, f"{self.prefix}{name}.")

    def child_or_none(self, name: str) -> Fields | None:
        """An object inside this one; None where the field is missing or null."""
        return None if self.values.get(name) is None else self.child(name)

    def children(self, name: str) -> tuple[Fields, ...]:
        """A list of objects."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(name, "a list of objects")
        return tuple(Fields(self.origin, item, f"{self.prefix}{name}[{i}].") for i, item in enumerate(value))

    def verdicts(self, name: str, length: int) -> tuple[bool | None, ...]:
        """A list of `length` entries, each true, false or null."""
        return self._verdicts(name, self.values.get(name), length)

    def verdict_rows(self, name: str, length: int) -> tuple[tuple[bool | None, ...], ...]:
        """A list of rows of `length` entries, each true, false or null; empty where missing or null."""
        value = self.values.get(name) or []
        if not isinstance(value, list):
            raise self.wrong(name, "a list of lists")
        return tuple(self._verdicts(name, row, length) for row in value)

    def _verdicts(self, name: str, value: object, length: int) -> tuple[bool | None, ...]:
        right = isinstance(value, list) and len(value) == length
        if not right or not all(item is None or isinstance(item, bool) for item in value):  # type: ignore[attr-defined]
            raise self.wrong(name, f"true, false or null for each of {length} words")
        return tuple(value)  # type: ignore[arg-type]


def read_text(path: Path) -> str:
    """Read a UTF-8 file of a run, and compare it with its checksum where the run is finished.

    Raises:
        RunError: it cannot be read, or is damaged.
    """
    try:
        return read_checked(path).decode()
    except UnicodeDecodeError as error:
        raise RunError(f"{path} must be readable UTF-8, got: {error}.") from error

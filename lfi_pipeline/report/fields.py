"""Typed access to JSON that somebody else wrote: a wrong field is a `RunError` naming file and field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.errors import RunError


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
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{origin} must be JSON, got something else: {error}.") from error
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
        found = repr(self.values[name])[:80] if name in self.values else "nothing"
        return RunError(f"{self.origin}: field {self.prefix + name!r} must be {wanted}, got {found}.")

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
        return float(value)

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
    """Read a UTF-8 file.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} must be readable UTF-8, got: {error}.") from error

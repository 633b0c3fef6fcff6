"""Frozen dataclasses to plain JSON values and back, strictly: complaints name the field by dotted path."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lfi_pipeline.errors import ConfigError

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
    return float(value) if kind is float else value

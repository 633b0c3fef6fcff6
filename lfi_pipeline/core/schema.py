"""Records from plain JSON, and dataclasses to it: the types are checked by msgspec, the words of the errors are ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import EllipsisType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from lfi_pipeline.core.errors import ConfigError, LFIError, RunError

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1, description="a whole number of at least 0 (int64)")]
Share = Annotated[float, msgspec.Meta(ge=0, le=1, description="a number in [0, 1]")]
_REFUSALS = (msgspec.ValidationError, UnicodeEncodeError, SystemError)
"""By msgspec; the last two of half a surrogate pair and, before version 0.22, of an integer that no float holds."""
_WORDS = {
    int: "a whole number",
    float: "a number (float64)",  # JSON knows no largest integer
    str: "a string",
    bool: "true or false",
    EllipsisType: "left out (unknown field)",  # the type of no JSON
}


def read_as(kind: type[T], value: Any, origin: str, where: str = "", error: type[LFIError] = RunError) -> T:
    """Return JSON that somebody else wrote as a value of the type `kind`; fields that it does not declare are passed over.

    Args:
        kind: dataclasses and Structs of int, float, str, bool, Literal, tuple, dict and `... | None`; bounds are
            `Annotated` with a `Meta`, whose description says what must hold.
        value: the parsed JSON.
        origin: what to name in an error, a path or a path with a line number.
        where: dotted way to `value` inside it.
        error: class of the error to raise.

    Raises:
        LFIError: of class `error`: a field is missing or not what it must be; names `origin` and the way to the field.
    """
    try:
        return msgspec.convert(value, kind, strict=True)
    except _REFUSALS as cause:
        if isinstance(cause.__cause__, LFIError):  # of the dataclass itself
            raise cause.__cause__ from None
        raise wrong(origin, *_refused(kind, value, where), error) from None


def wrong(origin: str, where: str, wanted: str, value: Any, error: type[LFIError] = RunError) -> LFIError:
    """The error to raise where a value is of its type and still not what it must be; arguments as `read_as`."""
    place = ": ".join(filter(None, (origin, where and f"field {where!r}"))) or "the record"
    return error(f"{place} must be {wanted}, got {plain_short(value)}.")


def check_types(record: object) -> None:
    """Check every field of a dataclass instance against its annotation.

    Raises:
        ConfigError: a field holds a value of another type, or one outside its `Literal`; names the field.
    """
    for name, kind in get_type_hints(type(record)).items():
        value, origin = getattr(record, name), type(record).__name__
        # msgspec takes lists for tuples and dicts for dataclasses, but what it makes of them is not equal to them
        if (read_as(kind, value, origin, name, ConfigError),) != (value,):
            raise wrong(origin, name, "of tuples and dataclasses, not lists and dicts", value, ConfigError)


def to_plain(record: Any) -> Any:
    """Turn a dataclass instance into dicts, lists, strings and numbers (floats as its annotations say)."""
    kind: Any = type(record)
    return json.loads(json.dumps(msgspec.to_builtins(msgspec.convert(record, _twin(kind), from_attributes=True))))


def from_plain(kind: type[T], value: Any) -> T:
    """Build the dataclass `kind` from what `to_plain` made of it.

    Raises:
        ConfigError: a field is missing, unknown, or of another type; names the field.
        LFIError: as the dataclasses raise it.
    """
    read_as(_twin(kind), value, "", error=ConfigError)  # type: ignore[arg-type] # classes are hashable
    return read_as(kind, value, "", error=ConfigError)


def plain_differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """List, one line a field, where two plain values differ: `"teacher.tag: 'a' != 'b'"`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        return [line for n in names for line in plain_differences(ours.get(n), theirs.get(n), _below(where, n))]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        lines = [line for i, (a, b) in pairs for line in plain_differences(a, b, f"{where}[{i}]")]
        return lines if len(lines) <= 4 else [*lines[:4], f"{where}: and {len(lines) - 4} more items differ"]
    return [] if ours == theirs else [f"{where}: {plain_short(ours)} != {plain_short(theirs)}"]


def plain_short(value: Any) -> str:
    """Show a plain value in a message, whatever its size."""
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} items"
    try:
        text = "nothing" if value is msgspec.UNSET else repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists within lists
        return f"a large {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


@cache
def _twin(kind: Any) -> Any:
    """The same type with a Struct for each dataclass, which has no defaults and refuses fields that it does not know."""
    if isinstance(kind, type) and is_dataclass(kind):
        fields = [(name, _twin(inner)) for name, inner in get_type_hints(kind).items()]
        return msgspec.defstruct(kind.__name__, fields, forbid_unknown_fields=True)
    return tuple[tuple(map(_twin, get_args(kind)))] if get_origin(kind) is tuple else kind  # type: ignore[misc]


def _refused(kind: Any, value: Any, where: str) -> tuple[str, str, Any]:
    """Return the way to what msgspec refuses, what must be there and what is."""
    for place, inner, part in _parts(_bare(kind), value, where):
        try:
            msgspec.convert(part, inner, strict=True)
        except _REFUSALS:
            return _refused(inner, part, place)
    return where, _wanted(kind), value


def _parts(kind: Any, value: Any, where: str) -> list[tuple[str, Any, Any]]:
    """Ways, types and values of the items or fields of a value; UNSET where a field is missing."""
    origin, within = get_origin(kind), get_args(kind)
    if isinstance(value, list | tuple) and origin is tuple:
        kinds = within[:1] * len(value) if within[-1] is ... else within
        return [(f"{where}[{i}]", *part) for i, part in enumerate(zip(kinds, value, strict=False))]
    if isinstance(value, dict) and origin in (dict, Mapping):
        return [(_below(where, name), within[1], inner) for name, inner in value.items()]
    if not isinstance(value, dict) or not (is_dataclass(kind) or hasattr(kind, "__struct_fields__")):
        return []
    known, hints = cast(Any, msgspec.inspect.type_info(kind)), get_type_hints(kind, include_extras=True)
    fields = {each.encode_name: hints[each.name] for each in known.fields if each.required or each.encode_name in value}
    if getattr(known, "forbid_unknown_fields", False):
        fields |= dict.fromkeys(value.keys() - fields.keys(), EllipsisType)
    return [(_below(where, name), inner, value.get(name, msgspec.UNSET)) for name, inner in fields.items()]


def _bare(kind: Any) -> Any:
    """A type without its bounds and without None."""
    return _bare(get_args(kind)[0]) if get_origin(kind) in (Annotated, Union, UnionType) else kind


def _wanted(kind: Any) -> str:
    """What a value of a type must be, in words."""
    origin, within = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return str(kind.__metadata__[0].description)
    if origin in (Union, UnionType):
        return _wanted(within[0])
    if origin is Literal:
        return f"one of {', '.join(map(repr, within))}"
    if origin is tuple:
        return "a list" if within[-1] is ... else f"{len(within)} values"
    return _WORDS.get(kind, f"an object ({kind.__name__})" if hasattr(kind, "__dataclass_fields__") else "an object")

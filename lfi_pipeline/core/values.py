"""Check a value against its type, range and choices; msgspec checks the type, the messages are written here."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Union, get_args, get_origin

import msgspec

from lfi_pipeline.core.errors import ConfigError, LFIError, UnknownNameError

Choices = Sequence[str] | Callable[[], Iterable[str]]
_LARGEST_INT = 2**63 - 1
_LONGEST = 200  # characters of a wrong value that are shown


class Limits(Protocol):
    """Range and choices of a value, as `options.Option` explains them."""

    @property
    def gt(self) -> float | None: ...
    @property
    def ge(self) -> float | None: ...
    @property
    def lt(self) -> float | None: ...
    @property
    def le(self) -> float | None: ...
    @property
    def choices(self) -> Choices | None: ...
    @property
    def noun(self) -> str | None: ...
    @property
    def at_least_one(self) -> bool: ...
    @property
    def metavar(self) -> str | None: ...


def fitting(name: str, kind: Any, value: Any, option: Limits) -> Any:
    """Return a plain value as a value of the type `kind`.

    Args:
        name: what the value is called in messages.
        kind: a type.
        value: plain, as JSON and TOML have it, or of the type already.
        option: its range and choices.

    Raises:
        ConfigError: a value of the wrong type or out of range.
        UnknownNameError: a value that is none of the choices.
    """
    try:
        result = _converted(kind, value)
    except (msgspec.ValidationError, TypeError):
        shortened = _shortened(value)
        raise ConfigError(
            f"{name} must be {requirement(kind, option.metavar)}, got {shortened}.", argument=name
        ) from None
    except LFIError as error:
        raise error.within(name) from error
    if option.at_least_one and isinstance(result, Sequence | Mapping) and not result:
        raise ConfigError(f"{name} must name at least one, got none.", argument=name)
    numbers = [each for each in (result if isinstance(result, tuple) else (result,)) if _is_number(each)]
    if any(not _within(each, option) for each in numbers):
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        raise ConfigError(f"{name} must be {_range(option, numbers)}, got {shown}.", argument=name)
    named = [each for each in (result if isinstance(result, tuple) else (result,)) if each is not None]
    if option.choices is not None and named:
        choices = tuple(option.choices() if callable(option.choices) else option.choices)
        for each in named:
            if each not in choices:
                raise UnknownNameError(option.noun or name.replace("_", " "), str(each), choices, argument=name)
    return result


def _shortened(value: Any) -> str:
    """A wrong value for a message: cut where it is long, whatever Python says of printing it."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a value that is too long to print ({type(value).__name__})"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def requirement(kind: Any, metavar: str | None = None) -> str:
    """Say what a value of this type must be: `"a whole number"`, `"a list of texts"`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(requirement(each) for each in inner if each is not type(None))
    if origin is tuple and inner[-1] is Ellipsis:
        return f"a list of {_PLURALS.get(_without_none(inner[0]), 'values')}"
    if origin is tuple:
        return f"{len(inner)} {_PLURALS.get(inner[0], 'values')}"
    if origin is not None and issubclass(origin, Mapping):
        what = "of plain values" if inner[1] is Any else f"of {_PLURALS[inner[1]]}" if inner[1] in _PLURALS else ""
        return " ".join(filter(None, ("a table", what))) + (f", such as {metavar}" if metavar else "")
    return _SINGULARS.get(kind, f"a {kind.__name__}")


_SINGULARS = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", Path: "a path"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts", bool: "true or false", Path: "paths"}


def _converted(kind: Any, value: Any) -> Any:
    """Convert a plain value to a type, strictly.

    Raises:
        msgspec.ValidationError, TypeError: it is of another type.
        LFIError: the type's own `parse` refuses it.
    """
    own = _own_type(kind)
    if own is not None:
        if get_origin(kind) is not None and issubclass(get_origin(kind), Mapping):
            table = msgspec.convert(value, dict[str, Any], strict=True)
            return {key: _parsed(own, inner, key) for key, inner in table.items()}
        if get_origin(kind) is tuple:
            return tuple(_parsed(own, inner) for inner in msgspec.convert(value, list[Any], strict=True))
        return value if value is None else _parsed(own, value)
    result = msgspec.convert(value, kind, strict=True, dec_hook=_hook)
    _require_plain(result)
    return result


def _own_type(kind: Any) -> Any:
    """The class within a type that reads its values itself, by its classmethod `parse`; None: there is none."""
    return next((each for each in (kind, *get_args(kind)) if isinstance(each, type) and hasattr(each, "parse")), None)


def _parsed(kind: Any, value: Any, where: str = "") -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, str | int | float | Mapping) or isinstance(value, bool):
        raise TypeError
    try:
        return kind.parse(value)
    except LFIError as error:
        raise (error.within(where) if where else error) from error


def _hook(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError


def _require_plain(value: Any) -> None:
    """Refuse what JSON or TOML cannot hold: numbers that are not finite or too large, and objects of other classes."""
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) and inner is not None for name, inner in value.items()):
            raise TypeError  # TOML has no null
        for inner in value.values():
            _require_plain(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_plain(inner)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError
    elif isinstance(value, int):
        if abs(value) > _LARGEST_INT:
            raise TypeError
    elif not isinstance(value, str | Path) and value is not None:
        raise TypeError


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _within(value: float, option: Limits) -> bool:
    return (
        (option.gt is None or value > option.gt)
        and (option.ge is None or value >= option.ge)
        and (option.lt is None or value < option.lt)
        and (option.le is None or value <= option.le)
    )


def _range(option: Limits, numbers: Sequence[float]) -> str:
    low, high = (option.ge if option.gt is None else option.gt), (option.le if option.lt is None else option.lt)
    finite = " and finite" if any(isinstance(each, float) for each in numbers) else ""
    if low is None:
        return f"{'at most' if option.lt is None else 'less than'} {high:g}"
    if high is None:
        if option.gt is None:
            return f"{low:g} or more{finite}"
        return f"{'positive' if low == 0 else f'more than {low:g}'}{finite}"
    if option.gt is not None and option.lt is not None:
        return f"between {low:g} and {high:g}, both excluded"
    return f"{'from' if option.gt is None else 'above'} {low:g} to {'' if option.lt is None else 'below '}{high:g}"


def _without_none(kind: Any) -> Any:
    return next((each for each in get_args(kind) if each is not type(None)), kind)

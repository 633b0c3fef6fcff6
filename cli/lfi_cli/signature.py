"""What typer reads of a command: the parameters of a function, made of the declarations of config classes.

Values stay what was typed where the library reads them better than typer does: a list in one word, a table's entry, a
number that may also be `none`.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from lfi_pipeline.core.options import Declared

JSON = "Print one JSON object with the result on stdout, all else on stderr."
FILE = "TOML file of these settings; options go over it."
HELP = "Show this message and exit."
_METAVARS = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}
_LONGEST_CHOICES = 28


def signature(options: Iterable[Declared], *, file: bool) -> inspect.Signature:
    """Return the signature of a command: its options, older names of them (hidden), and what every command has.

    Args:
        options: in the order of the help.
        file: whether settings may come from `--config FILE`.
    """
    parameters = []
    if file:
        parameters.append(_keyword("config", Path | None, typer.Option("--config", help=FILE, metavar="FILE"), None))
    for each in options:
        if each.option.cli:
            parameters += _parameters(each)
            for older in older_names(each):
                parameters += _parameters(older, hidden=True)
    parameters.append(
        _keyword("as_json", bool, typer.Option("--json", help=JSON, metavar="", show_default=False), False)
    )
    return inspect.Signature(parameters)


def older_names(each: Declared) -> Iterator[Declared]:
    """Return an option under each of its older names, with the type that it had."""
    for alias in each.aliases:
        yield dataclasses.replace(each, name=alias.name, kind=alias.kind or each.kind)


def off_name(name: str) -> str:
    """Return the name of the parameter that switches off an option that is off by default."""
    return f"no_{name}"


def sections(options: Iterable[Declared], *, file: bool) -> dict[str, list[tuple[str, str]]]:
    """Return what the help lists: heading -> options, each with its help text. Arguments as in `signature`."""
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for each in options:
        if each.option.cli:
            title = "Arguments" if each.option.positional else each.panel or "Options"
            panels.setdefault(title, []).append((_spelt(each), _help(each)))
    if file:
        panels["Options"].insert(0, ("--config FILE", FILE))
    panels["Options"] += [("--json", JSON), ("--help", HELP)]
    return {title: records for title, records in panels.items() if records}


def flag(name: str) -> str:
    """Return an option as it is typed."""
    return "--" + name.replace("_", "-")


def spelling(options: Iterable[Declared]) -> dict[str, str]:
    """Return how each of these options is typed, by name."""
    return {
        each.name: each.name.upper() if each.option.positional else flag(each.name)
        for each in options
        if each.option.cli
    }


def is_table(kind: Any) -> bool:
    """Whether values of this type are given entry by entry, as KEY=VALUE."""
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def is_list(kind: Any) -> bool:
    """Whether a value of this type has any number of entries."""
    return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis


def without_none(kind: Any) -> Any:
    """Return a type without its None: `int | None` becomes int. A union of several other types stays a union."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    kinds = [each for each in get_args(kind) if each is not type(None)]
    return kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007


def plain_text(text: str) -> str:
    """Return text whose square brackets rich does not take for markup."""
    return text.replace("[", r"\[")


def _keyword(name: str, kind: Any, said: Any, default: Any) -> inspect.Parameter:
    annotation = Annotated[kind, said]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameters(each: Declared, *, hidden: bool = False) -> list[inspect.Parameter]:
    """Return the parameters of one option. The default is None, so that a file or the library sets what is not typed.

    A switch that is off by default has a second parameter, `--no-NAME`, which few people need: the help leaves it out,
    which keeps the help's columns narrow.
    """
    kind, help_text = without_none(each.kind), plain_text(_help(each))
    if each.option.positional:
        said = typer.Argument(help=help_text, metavar=_argument(each), show_default=False)
        if each.required:
            return [_keyword(each.name, _read_as(each), said, inspect.Parameter.empty)]
        return [_keyword(each.name, _read_as(each) | None, said, None)]
    spellings = [flag(each.name), *(flag(other) for other in each.option.flags if not hidden)]
    off_switch = []
    if kind is bool and each.default is False:
        off = typer.Option(f"--no-{spellings[0][2:]}", hidden=True, metavar="", show_default=False)
        off_switch.append(_keyword(off_name(each.name), bool, off, False))
    elif kind is bool:
        spellings[0] = f"{spellings[0]}/--no-{spellings[0][2:]}"
    option = typer.Option(
        *spellings,
        help=help_text,
        hidden=hidden,
        metavar="" if kind is bool else _metavar(each, kind),
        rich_help_panel=each.panel,
        show_default=False,
    )
    return [_keyword(each.name, _read_as(each) | None, option, None), *off_switch]


def _read_as(each: Declared) -> Any:
    """The type that typer reads an option as."""
    kind = without_none(each.kind)
    if is_table(kind):
        return list[str]
    if is_list(kind):
        if each.option.separator is not None:
            return str
        inner = get_args(kind)[0]
        return list[Path] if inner is Path else list[str]
    if get_origin(kind) is tuple:
        return tuple[get_args(kind)]  # type: ignore[misc]
    if each.option.repeated:
        return list[str]
    return kind if kind in (bool, Path) or (kind in (int, float) and kind is each.kind) else str


def _argument(each: Declared) -> str:
    return each.option.metavar or each.name.upper()


def _spelt(each: Declared) -> str:
    """An option with its placeholder, as text."""
    kind = without_none(each.kind)
    if each.option.positional:
        shown = _argument(each) + "..." * is_list(kind)
        return shown if each.required else f"[{shown}]"
    shown = ", ".join([flag(each.name), *(flag(other) for other in each.option.flags)])
    if kind is bool:
        return shown if each.default is False else f"{shown} / --no-{flag(each.name)[2:]}"
    return f"{shown} {_metavar(each, kind)}"


def _metavar(each: Declared, kind: Any) -> str:
    if each.option.metavar is not None:
        return each.option.metavar
    choices = "|".join(each.choices or ())
    if choices and len(choices) <= _LONGEST_CHOICES:
        return choices
    if is_table(kind):
        return "KEY=VALUE"
    if is_list(kind):
        inner = _METAVARS.get(without_none(get_args(kind)[0]), "TEXT")
        return inner if each.option.separator is None else f"{inner}{each.option.separator}..."
    if get_origin(kind) is tuple:
        return " ".join(_METAVARS[inner] for inner in get_args(kind))
    return _METAVARS.get(kind, "TEXT")


def _help(each: Declared) -> str:
    kind = without_none(each.kind)
    help_text = each.option.help
    if (is_list(kind) and each.option.separator is None and not each.option.positional) or is_table(kind):
        help_text += " May be repeated."
    choices = "|".join(each.choices or ())
    if choices and (each.option.metavar or len(choices) > _LONGEST_CHOICES):
        help_text += f" One of {', '.join(each.choices or ())}."
    shown = "" if each.required else _shown(each.default, each.option.empty)
    notes = [f"default: {shown}"] if shown else ["required"] if each.required and not each.option.positional else []
    return " ".join([help_text, *(f"[{note}]" for note in notes)])


def _shown(default: Any, empty: str | None) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ", ".join(_shown(entry, None) for entry in default) or empty or ""
    if isinstance(default, float):
        return f"{default:.4g}"
    return "" if default is None or default == {} else str(default)

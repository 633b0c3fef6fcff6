"""Commands made of config dataclasses: every option, its type, default, range and help stand in the library alone.

    @command(ExportCommand)
    def export(config: ExportCommand) -> Shown:
        '''What it does. Example: lfi export runs/lfi-0 --out exported/'''

A command is given the config that was built of its options, or, where it asks for them `raw`, what was given and no
more. It returns a result and a way to show it; `--json`, errors and exit codes are the same for all.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import click

from lfi_cli.output import Shown, conclude, fail
from lfi_pipeline.core.errors import ConfigError, LFIError
from lfi_pipeline.core.options import Declared, build, declared
from lfi_pipeline.core.settings_file import SettingsFile
from lfi_pipeline.core.values import requirement

WIDTH = 120
"""Columns of the help at most."""
JSON = "Print one JSON object with the result on stdout, all else on stderr."
FILE = "TOML file of these settings; options go over it."
_METAVARS = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}
_LONGEST_CHOICES = 44


class GeneratedCommand(click.Command):
    """A command of a config class.

    Attributes:
        config: the class, or several where the command is run `raw`.
        file: reads the settings that `--config FILE` may give; None: there is no such option.
    """

    def __init__(self, *, config: Any, file: SettingsFile | None, run: Callable[[Any], Shown], raw: bool) -> None:
        self.config, self.file, self._run, self._raw = config, file, run, raw
        super().__init__(
            name=run.__name__.replace("_", "-"),
            callback=self._called,
            help=inspect.getdoc(run),
            context_settings={"max_content_width": WIDTH},
        )

    @functools.cached_property
    def options(self) -> dict[str, Declared]:
        """What the classes declare, by name; read when it is asked for, since `lfi --help` does not need it."""
        classes = self.config if isinstance(self.config, tuple) else (self.config,)
        return {name: each for kind in classes for name, each in declared(kind).items()}

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options, older names and what every command has."""
        return [*self._generated, *super().get_params(ctx)]

    @functools.cached_property
    def _generated(self) -> list[click.Parameter]:
        parameters: list[click.Parameter] = []
        for each in self.options.values():
            if not each.option.cli:
                continue
            parameters.append(_parameter(each))
            for alias in each.aliases:
                older = dataclasses.replace(each, name=alias.name, kind=alias.kind or each.kind)
                parameters.append(_parameter(older, hidden=True))
        if self.file is not None:
            parameters.append(click.Option(["config", "--config"], type=click.UNPROCESSED))
        parameters.append(click.Option(["as_json", "--json"], is_flag=True))
        return parameters

    def _called(self, **parameters: Any) -> dict[str, Any]:
        as_json, file = parameters.pop("as_json"), parameters.pop("config", None)
        try:
            given = self._given(parameters)
            if self.file is not None and file is not None:
                given = _over(self.file.read(Path(file)), given)
            shown = self._run(given if self._raw else build(self.config, given))
        except (LFIError, KeyboardInterrupt, click.exceptions.Exit) as error:
            fail(error, as_json, self)
        return conclude(shown, as_json)

    def _given(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What was given, by option and of plain type."""
        options = self.options
        older = {alias.name: (each, alias) for each in options.values() for alias in each.aliases}
        values = {}
        for name, raw in parameters.items():
            if raw is None or raw == ():
                continue
            each = options.get(name)
            if each is None:
                current, alias = older[name]
                each = dataclasses.replace(current, name=name, kind=alias.kind or current.kind)
            values[name] = plain_value(each, raw)
        return values

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section a panel, in the order of the options."""
        for title, records in self.sections().items():
            with formatter.section(title):
                formatter.write_dl(records)

    def sections(self) -> dict[str, list[tuple[str, str]]]:
        """What the help lists: by heading, options with what is said of them."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for each in self.options.values():
            if each.option.cli:
                title = "Arguments" if each.option.positional else each.panel or "Options"
                sections.setdefault(title, []).append((_spelt(each), _help(each)))
        own = sections["Options"]
        if self.file is not None:
            own.insert(0, ("--config FILE", FILE))
        own.append(("--json", JSON))
        own.append(("--help", "Show this message and exit."))
        return {title: records for title, records in sections.items() if records}

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Name the positional arguments as the help does."""
        positional = [_spelt(each) for each in self.options.values() if each.option.positional]
        return ["[OPTIONS]", *positional]


def command(
    config: Any, *, raw: bool = False, file: SettingsFile | None = None
) -> Callable[[Callable[[Any], Shown]], GeneratedCommand]:
    """Make a command of a config class and the function that runs it; its docstring is the help.

    Args:
        config: a class of `lfi_pipeline.core.options`, or several where `raw`; an option may be in more than one.
        raw: give the function what was given, by name and of plain type, in place of a config.
        file: reads the settings that `--config FILE` may give.
    """
    return lambda run: GeneratedCommand(config=config, file=file, run=run, raw=raw)


def flag(name: str) -> str:
    """Return an option as it is typed."""
    return "--" + name.replace("_", "-")


def plain_value(each: Declared, raw: Any) -> Any:
    """Return what was typed for an option as a plain value, whose range and choices are not checked.

    Raises:
        ConfigError: it is not written as it must be.
    """
    kind = _without_none(each.kind)
    if kind is bool:
        return raw
    if _is_table(kind):
        return dict(_pair(each, text, get_args(kind)[1]) for text in raw)
    if _is_list(kind):
        texts = [raw] if isinstance(raw, str) else list(raw)
        if each.option.separator is not None:
            texts = [part.strip() for text in texts for part in text.split(each.option.separator) if part.strip()]
        return [] if texts == [each.option.empty] else [_scalar(get_args(kind)[0], text) for text in texts]
    if get_origin(kind) is tuple:
        return [_scalar(inner, text) for inner, text in zip(get_args(kind), raw, strict=True)]
    if each.option.repeated:
        return [_scalar(kind, text) for text in raw]
    value = _scalar(each.kind if kind in (int, float) else kind, raw)
    if kind in (int, float) and isinstance(value, str):
        raise click.BadParameter(f"{requirement(kind)} is wanted, got {raw!r}.", param_hint=flag(each.name))
    return value


def _scalar(kind: Any, text: str) -> Any:
    """A number where one is wanted and written; anything else stays text, which the library then refuses by name."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if "," in text and any(get_origin(each) is tuple for each in kinds):
        return [_scalar(int, part.strip()) for part in text.split(",") if part.strip()]
    for wanted in (int, float):
        if wanted in kinds:
            try:
                return wanted(text)
            except ValueError:
                pass
    return None if text == "none" and type(None) in kinds else text


def _pair(each: Declared, text: str, kind: Any) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        example = each.option.metavar or "KEY=VALUE"
        raise ConfigError(f"{each.name} must be written {example}, got {text!r}.", argument=each.name)
    if kind is not Any:
        return key, value
    try:
        return key, json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        return key, value


def _over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `given` over `base`; tables are merged entry by entry."""
    merged = dict(base)
    for name, value in given.items():
        both = isinstance(value, Mapping) and isinstance(base.get(name), Mapping)
        merged[name] = {**base[name], **value} if both else value
    return merged


def _parameter(each: Declared, *, hidden: bool = False) -> click.Parameter:
    kind = _without_none(each.kind)
    if each.option.positional:
        many = _is_list(kind)
        return click.Argument([each.name], nargs=-1 if many else 1, required=each.required, type=click.UNPROCESSED)
    spellings = [flag(each.name), *(flag(other) for other in each.option.flags if not hidden)]
    if kind is bool:
        (first, *others) = spellings
        return click.Option([each.name, f"{first}/--no-{first[2:]}", *others], default=None, hidden=hidden)
    fixed = get_origin(kind) is tuple and not _is_list(kind)
    return click.Option(
        [each.name, *spellings],
        multiple=_is_table(kind) or (_is_list(kind) and each.option.separator is None) or each.option.repeated,
        nargs=len(get_args(kind)) if fixed else 1,
        default=None,
        type=click.UNPROCESSED,
        hidden=hidden,
    )


def _spelt(each: Declared) -> str:
    """An option with its placeholder, as the help shows it."""
    kind = _without_none(each.kind)
    if each.option.positional:
        shown = each.option.metavar or each.name.upper()
        shown += "..." if _is_list(kind) else ""
        return shown if each.required else f"[{shown}]"
    shown = ", ".join([flag(each.name), *(flag(other) for other in each.option.flags)])
    if kind is bool:
        return f"{shown} / --no-{flag(each.name)[2:]}" if each.default is not False or each.panel else shown
    return f"{shown} {_metavar(each, kind)}"


def _metavar(each: Declared, kind: Any) -> str:
    if each.option.metavar is not None:
        return each.option.metavar
    choices = "|".join(each.choices or ())
    if choices and len(choices) <= _LONGEST_CHOICES:
        return choices
    if _is_table(kind):
        return "KEY=VALUE"
    if _is_list(kind):
        inner = _METAVARS.get(_without_none(get_args(kind)[0]), "TEXT")
        return inner if each.option.separator is None else f"{inner}{each.option.separator}..."
    if get_origin(kind) is tuple:
        return " ".join(_METAVARS[inner] for inner in get_args(kind))
    return _METAVARS.get(kind, "TEXT")


def _help(each: Declared) -> str:
    kind = _without_none(each.kind)
    told = each.option.help
    if (_is_list(kind) and each.option.separator is None and not each.option.positional) or _is_table(kind):
        told += " May be repeated."
    choices = "|".join(each.choices or ())
    if choices and (each.option.metavar or len(choices) > _LONGEST_CHOICES):
        told += f" One of {', '.join(each.choices or ())}."
    shown = "" if each.required else _shown(each.default, each.option.empty)
    notes = [f"default: {shown}"] if shown else ["required"] if each.required and not each.option.positional else []
    return " ".join([told, *(f"[{note}]" for note in notes)])


def _shown(default: Any, empty: str | None) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ", ".join(_shown(entry, None) for entry in default) or empty or ""
    if isinstance(default, float):
        return f"{default:.4g}"
    return "" if default is None or default == {} else str(default)


def _is_table(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis


def _without_none(kind: Any) -> Any:
    """The type of a value that is given; a union of several stays one."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    kinds = [each for each in get_args(kind) if each is not type(None)]
    return kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007


def spelling(commands: Sequence[GeneratedCommand]) -> dict[str, str]:
    """How each option of these commands is typed, by name; the first command that has it counts."""
    found: dict[str, str] = {}
    for each in commands:
        for name, option in each.options.items():
            if option.option.cli:
                found.setdefault(name, name.upper() if option.option.positional else flag(name))
    return found

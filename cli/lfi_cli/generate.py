"""Writes cli/README.md from the declarations: every command with its options. Run: python -m lfi_cli.generate"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import typer

from lfi_cli.main import PANELS, entries
from lfi_cli.output import Result, Shown, conclude, fail
from lfi_cli.signature import (
    flag,
    is_list,
    is_table,
    off_name,
    older_names,
    plain_text,
    sections,
    signature,
    spelling,
    without_none,
)
from lfi_pipeline.core import extras
from lfi_pipeline.core.errors import ConfigError, LFIError
from lfi_pipeline.core.options import Declared, build, declared
from lfi_pipeline.core.settings_file import SettingsFile
from lfi_pipeline.core.values import requirement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a config class.

    Attributes:
        config: the class, or several where the command is run `raw`.
        run: the function that does the work.
        raw: call `run` with the plain values of the options, by name, in place of a config.
        file: reads the settings that `--config FILE` may give; None: there is no such option.
    """

    config: Any
    run: Callable[[Any], Shown]
    raw: bool = False
    file: SettingsFile | None = None

    @property
    def help(self) -> str:
        """What it does, in paragraphs, with an example."""
        return inspect.getdoc(self.run) or ""

    @functools.cached_property
    def options(self) -> dict[str, Declared]:
        """What the classes declare, by name."""
        classes = self.config if isinstance(self.config, tuple) else (self.config,)
        return {name: each for kind in classes for name, each in declared(kind).items()}

    def sections(self) -> dict[str, list[tuple[str, str]]]:
        """Return what the help lists: heading -> options, each with its help text."""
        return sections(self.options.values(), file=self.file is not None)

    def register(self, app: typer.Typer, name: str, panel: str | None = None) -> None:
        """Make it a command of `app`: a function whose parameters are the options."""

        def called(**parameters: Any) -> Result:
            return self._called(parameters)

        made = signature(self.options.values(), file=self.file is not None)
        called.__signature__ = made  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in made.parameters.values()}
        app.command(name, help=plain_text(self.help), rich_help_panel=panel)(called)

    def _called(self, parameters: dict[str, Any]) -> Result:
        as_json, file = parameters.pop("as_json"), parameters.pop("config", None)
        try:
            settings = self._given(parameters)
            if self.file is not None and file is not None:
                settings = _over(self.file.read(file), settings)
            with extras():
                shown = self.run(settings if self.raw else build(self.config, settings))
        except (LFIError, KeyboardInterrupt, typer.Exit) as error:
            fail(error, as_json, spelling(self.options.values()), every_spelling)
        return conclude(shown, as_json)

    def _given(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that were typed, as plain values by name."""
        options = self.options
        older = {each.name: each for current in options.values() for each in older_names(current)}
        known = older | options
        off = {off_name(name): name for name in known}
        values: dict[str, Any] = {}
        for name, raw in parameters.items():
            if name in known and raw is not None and raw != []:
                values[name] = plain_value(known[name], raw)
            elif name not in known and raw:
                if off[name] in values:
                    raise typer.BadParameter(f"give {flag(off[name])} or {flag(name)}, not both.")
                values[off[name]] = False
        return values


def command(
    config: Any, *, raw: bool = False, file: SettingsFile | None = None
) -> Callable[[Callable[[Any], Shown]], Command]:
    """Make a command of a config class and the function that runs it; its docstring is the help.

    Args:
        config: a class of `lfi_pipeline.core.options`, or several where `raw`; an option may be in more than one.
        raw: call the function with the plain values of the options, by name, in place of a config.
        file: reads the settings that `--config FILE` may give.
    """
    return lambda run: Command(config=config, file=file, run=run, raw=raw)


def every_spelling() -> dict[str, str]:
    """Return how each option of any command is typed, by name; the first command that has it counts."""
    spellings: dict[str, str] = {}
    for _, entry in entries():
        spellings = spelling(entry.load().options.values()) | spellings
    return spellings


def plain_value(each: Declared, raw: Any) -> Any:
    """Return what was typed for an option as a plain value, whose range and choices are not checked.

    Raises:
        ConfigError: it is not written as it must be.
    """
    kind = without_none(each.kind)
    if kind is bool:
        return raw
    if is_table(kind):
        return dict(_pair(each, text, get_args(kind)[1]) for text in raw)
    if is_list(kind):
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
        raise typer.BadParameter(f"{requirement(kind)} is wanted, got {raw!r}.", param_hint=flag(each.name))
    return value


def _scalar(kind: Any, text: Any) -> Any:
    """A number where one is wanted and written; anything else stays text, which the library then refuses by name."""
    if not isinstance(text, str):
        return str(text) if isinstance(text, Path) else text  # typer has read it
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


def _over(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `overrides` in place of its entries; tables are merged entry by entry."""
    merged = dict(base)
    for name, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(base.get(name), Mapping)
        merged[name] = {**base[name], **value} if both else value
    return merged


README = Path(__file__).resolve().parents[1] / "README.md"
INTRODUCTION = """# The command line

Every command, with every option, as `lfi COMMAND --help` tells it. This file is written by `python -m lfi_cli.generate`
from the same declarations that the commands are made of; a test compares the two.

- `--json` prints one JSON object on stdout and everything else on stderr. An error is an object too:
  `{"error": {"type": ..., "message": ...}}`.
- The exit code is 0, 1 where something is wrong and the message says how to mend it, 2 where the command cannot be
  read, and 130 after Ctrl-C. What was finished is kept, and the same command goes on.
- `--config FILE`, where a command has it, reads its settings from a TOML file, by the names of the options; options go
  over it. A relative path in a file is relative to the file.
- An option of several values is repeated, or separated by commas, as its placeholder shows: `INT,...`.
- A switch that is off by default is switched off by `--no-NAME` too, for a file that switches it on.
- Names of earlier releases (`--learning-rate`, `--least-area`, `--aspect`, `--flip`, `--clip`, `--accumulate`,
  `--optimizer`, `--mix-probability`) are still read in this one: on the command line, in files and in the `config.json`
  of old runs.

A new option is one field of a config dataclass in the library (`lfi_pipeline/*/config.py`): its type, default, range
and help. It is then an option here, a key in TOML, an entry of `config.json`, an axis of a sweep and an argument in
Python.
"""


def readme() -> str:
    """Return what cli/README.md holds."""
    parts = [INTRODUCTION]
    for title, names in PANELS.items():
        parts += [f"## {title}\n", *(_section(name, entry.load()) for name, entry in names.items())]
    return "\n".join(parts)


def _section(name: str, command: Command) -> str:
    paragraphs = command.help.split("\n\n")
    lines = [f"### lfi {name}\n"]
    for paragraph in paragraphs:
        text = " ".join(paragraph.split())
        start, colon, example = text.partition(": ")
        shown = text.startswith(("Example: ", "On "))
        lines.append(f"{start}:\n\n    {example}\n" if shown and colon else f"{text}\n")
    lines.append("| option | what it does |\n|---|---|")
    for title, records in command.sections().items():
        if title not in ("Arguments", "Options"):
            lines.append(f"| **{_cell(title)}** | |")
        lines += [
            f"| `{_cell(spelt)}` | {_cell(text)} |" for spelt, text in records if spelt not in ("--json", "--help")
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")

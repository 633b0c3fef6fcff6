"""What every command shares: one JSON object or a table on stdout, and errors a person can act on."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from lfi_pipeline.core.errors import LFIError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Result = dict[str, Any]
INTERRUPTED = "interrupted. What was finished is kept; run the same command again to go on."
_WIDE = 1000
_QUOTED = re.compile(r"`([a-z][a-z_]*)(?:=([^`]+))?`")


@dataclass(frozen=True)
class Shown:
    """What a command has done.

    Attributes:
        result: for `--json`, and for a command that ran this one.
        render: prints it for people.
        code: of the exit.
        silent: print neither; another process speaks for this one.
    """

    result: Result
    render: Callable[[Console], None] = lambda console: None
    code: int = 0
    silent: bool = False


def conclude(shown: Shown, as_json: bool) -> Result:
    """Show a result as JSON or by its `render`, and return it; a code other than 0 ends the command."""
    if as_json and not shown.silent:
        print_json(shown.result)
    elif not shown.silent:
        shown.render(stdout())
    if shown.code:
        raise typer.Exit(shown.code)
    return shown.result


def fail(
    error: BaseException, as_json: bool, own: Mapping[str, str], every: Callable[[], Mapping[str, str]]
) -> NoReturn:
    """Print a user's error as one clear message and exit with 1, or with 130 after Ctrl-C.

    Any other exception is a bug and shows its traceback. A command that was run by this one has printed its own.

    Args:
        error: what ended the command.
        as_json: print it as an object on stdout too.
        own, every: as of `spoken`.
    """
    cause = error.__cause__ if isinstance(error, typer.Exit) else error
    if as_json and isinstance(cause, LFIError | KeyboardInterrupt):
        message = spoken(cause, own, every) if isinstance(cause, LFIError) else INTERRUPTED
        print_json({"error": {"type": type(cause).__name__, "message": message}})
    if isinstance(error, typer.Exit):
        raise error
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write(f"\n{INTERRUPTED}\n")
        raise typer.Exit(130) from error
    assert isinstance(error, LFIError)
    stderr().print("error: ", style="bold red", end="")
    sys.stderr.write(f"{spoken(error, own, every)}\n")
    raise typer.Exit(1) from error


def spoken(error: LFIError, own: Mapping[str, str], every: Callable[[], Mapping[str, str]]) -> str:
    """Return an error's message with the library's arguments as options: `lr` as --lr, `flip=0` as --flip 0.

    The library writes an argument in backticks, and names the one that an error is about beside the message.

    Args:
        error: of the library.
        own: how each option of the command is typed, by name.
        every: returns the same of all commands; a message may speak of another one's option.
    """
    message, argument = str(error), error.argument
    if argument is not None and argument in own and message.startswith(f"{argument} "):
        message = own[argument] + message.removeprefix(argument)
    if not _QUOTED.search(message):
        return message
    names = {**every(), **own}

    def option(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in names:
            return match.group() if value is None else f"{name}={value}"
        return names[name] if value is None else _given(names[name], value)

    return _QUOTED.sub(option, message)


def _given(option: str, text: str) -> str:
    """Return an option with its value as they are typed; `text` is the value as Python code writes it."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if isinstance(value, bool):
        return option if value else f"--no-{option[2:]}"
    return f"{option} {','.join(map(str, value)) if isinstance(value, tuple | list) else value}"


def print_json(result: Mapping[str, Any]) -> None:
    """Write one JSON object on one line of stdout."""
    sys.stdout.write(json.dumps(result, default=str) + "\n")
    sys.stdout.flush()


def plain_console(**settings: Any) -> Console:
    """A console that shows texts as they are: a file may be called `photo [edited].jpg`, and a word `:cat:`."""
    from rich.console import Console

    return Console(markup=False, emoji=False, **settings)


def stdout() -> Console:
    """A console for results; where its width is not known, as in a pipe, lines are as long as they need to be."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return plain_console(width=None if known else _WIDE)


def stderr() -> Console:
    """A console for everything that is not the result."""
    return plain_console(stderr=True)


def facts(console: Console, title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Print names and values in two columns; a value is never cut or wrapped, so that a path can be copied."""
    from rich.text import Text

    width = max((len(name) for name, _ in rows), default=0)
    console.print(Text(title, style="italic"), soft_wrap=True)
    for name, value in rows:
        console.print(Text.assemble((name.ljust(width), "dim"), "  ", str(value)), soft_wrap=True)


def whole_table(console: Console, table: Table) -> None:
    """Print a table in which no cell is cut, however narrow the terminal is."""
    widest = plain_console(file=console.file, width=_WIDE).measure(table).maximum
    plain_console(file=console.file, width=max(console.width, widest)).print(table)


def say(console: Console, *lines: str) -> None:
    """Print lines as they are, never cut."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def percent(value: float | None) -> str:
    """Format a share."""
    return "–" if value is None else f"{100 * value:.1f} %"


def hours_text(hours: float) -> str:
    """Format a length of time."""
    for unit, length in (("hours", 1.0), ("minutes", 1 / 60)):
        if abs(hours) >= length:
            return f"{hours / length:,.1f} {unit}"
    return f"{hours * 3600:,.2g} seconds"


def size_text(count: float) -> str:
    """Format a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def is_first_process() -> bool:
    """Whether this process prints the result: rank 0 under a launcher, and any process without one."""
    return os.environ.get("RANK", "0") == "0"


def show_tree(console: Console, out: Path, explained: Mapping[str, str]) -> None:
    """Print what lies in `out`, each entry with what it is; arguments as `tree`."""
    say(console, *tree(out, explained))


def tree(out: Path, explained: Mapping[str, str]) -> list[str]:
    """Return the lines that show what lies in `out`, each entry with what it is.

    Args:
        out: a directory.
        explained: glob below `out` -> what it is, in the order in which it is shown; what is not there is left out.
    """
    matches = [(pattern, sorted(out.glob(pattern)), text) for pattern, text in explained.items()]
    present = [(_shown_path(pattern, paths, out), text) for pattern, paths, text in matches if paths]
    if not present:
        return []
    width = max(len(name) for name, _ in present)
    lines = [f"{out}{'' if str(out).endswith('/') else '/'}"]
    for place, (name, text) in enumerate(present, start=1):
        lines.append(f"{'└──' if place == len(present) else '├──'} {name.ljust(width)}  {text}")
    return lines


def _shown_path(pattern: str, paths: Sequence[Path], out: Path) -> str:
    if len(paths) > 1:
        return pattern
    return paths[0].relative_to(out).as_posix() + ("/" if paths[0].is_dir() else "")

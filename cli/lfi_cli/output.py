"""What every command shares: one JSON object or a table on stdout, and errors a person can act on."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from lfi_pipeline.core.errors import LFIError

P = ParamSpec("P")
Result = dict[str, Any]
INTERRUPTED = "interrupted. What was finished is kept; run the same command again to go on."

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object with the result on stdout, all else on stderr.")
]
DeviceOption = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda or cuda:N.")]


def command(function: Callable[P, Result]) -> Callable[P, Result]:
    """Print an `LFIError` as one clear message and exit with 1, or with 130 after Ctrl-C.

    Any other exception is a bug: show its traceback.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except LFIError as error:
            if kwargs.get("as_json"):
                print_json(_described(error))
            Console(stderr=True).print("[bold red]error:[/] ", end="")
            sys.stderr.write(f"{error}\n")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            if kwargs.get("as_json"):
                print_json(_described(error))
            sys.stderr.write(f"\n{INTERRUPTED}\n")
            raise typer.Exit(130) from error
        except typer.Exit as ended:  # of a command that this one ran, which told the error on stderr
            if kwargs.get("as_json") and isinstance(ended.__cause__, LFIError | KeyboardInterrupt):
                print_json(_described(ended.__cause__))
            raise

    return wrapped


def _described(error: LFIError | KeyboardInterrupt) -> Result:
    return {"error": {"type": type(error).__name__, "message": str(error) or INTERRUPTED}}


def finish(result: Result, as_json: bool, render: Callable[[Console], None]) -> Result:
    """Show `result` as JSON or by `render`, and return it."""
    if as_json:
        print_json(result)
    else:
        render(Console())
    return result


def print_json(result: Mapping[str, Any]) -> None:
    """Write one JSON object on one line of stdout."""
    sys.stdout.write(json.dumps(result, default=str) + "\n")
    sys.stdout.flush()


def facts(console: Console, title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Print names and values in two columns; a value is never cut or wrapped, so that a path can be copied."""
    width = max(len(name) for name, _ in rows)
    console.print(Text(title, style="italic"), soft_wrap=True)
    for name, value in rows:
        console.print(Text.assemble((name.ljust(width), "dim"), "  ", str(value)), soft_wrap=True)


def percent(value: float | None) -> str:
    """Format a share."""
    return "–" if value is None else f"{100 * value:.1f} %"


def names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())

"""Entry point of `lfi`: a typer app in which the command that was asked for has its options, the others one line."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from lfi_cli.commands import GROUPS, PANELS

ABOUT = "Teach a small vision model how a vision-language model looks at images. Start with: lfi demo"


def app_for(words: Sequence[str]) -> typer.Typer:
    """Return the command line as it is for what is typed after `lfi`.

    Only the command that these words name is imported; the others are there for the list of commands.
    """
    command_words = [word for word in words if not word.startswith("-")]
    app = typer.Typer(
        name="lfi", help=ABOUT, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )
    app.callback()(_options)
    groups: dict[str, typer.Typer] = {}
    for panel, names in PANELS.items():
        for name, entry in names.items():
            group, _, inner = name.rpartition(" ")
            if group and group not in groups:
                groups[group] = typer.Typer(no_args_is_help=True)
                app.add_typer(groups[group], name=group, help=GROUPS[group], rich_help_panel=panel)
            at, heading = (groups[group], None) if group else (app, panel)
            if command_words[: name.count(" ") + 1] == name.split():
                entry.load().register(at, inner, heading)
            else:
                at.command(inner, help=entry.help, rich_help_panel=heading)(_not_asked_for)
    return app


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"lfi {version('lfi-pipeline')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            metavar="",
            help="Show the version and exit.",
            show_default=False,
        ),
    ] = False,
) -> None:
    """Declare the options that may stand before a command: `--version`, which `_show_version` handles."""


def _not_asked_for() -> None:
    raise AssertionError("This command was not named when the app was made.")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line. A terminal or file that cannot show a character shows another in its place.

    Args:
        words: what is typed after `lfi`; None: as this process was started.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):
                stream.reconfigure(errors="replace")
    # before torch is imported: threads that spin while they wait take the cores of whatever runs beside them
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:] if words is None else words
    app_for(words)(list(words), prog_name="lfi")

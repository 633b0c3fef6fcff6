"""Run public commands one after the other, each shown before it runs."""

from __future__ import annotations

import contextlib
import shlex
import sys

import typer
from rich.console import Console
from rich.markup import escape

from lfi_cli.output import Result


def run_command(*words: object) -> Result:
    """Print a public command, run it, and return its result. Its own output goes to stderr, as the caller's is stdout.

    Raises:
        typer.Exit: the command failed and has said so; its cause is the error.
    """
    from lfi_cli.main import app

    line = [str(word) for word in words]
    shown = escape(shlex.join(["lfi", *line]))
    Console(stderr=True).print(f"\n[bold]$ {shown}[/]", soft_wrap=True, highlight=False)
    arguments, sys.argv = sys.argv, ["lfi", *line]  # runs record the command that made them
    try:
        with contextlib.redirect_stdout(sys.stderr):
            # not `app(line, standalone_mode=False)`, which returns an exit code where a command fails
            group = typer.main.get_command(app)
            with group.make_context("lfi", line) as context:
                result: Result = group.invoke(context)
    finally:
        sys.argv = arguments
    return result

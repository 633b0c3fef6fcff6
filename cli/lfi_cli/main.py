"""Entry point of `lfi`. The module of a command is imported when it is asked for, so that none waits for another."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Mapping
from typing import Any

import click

from lfi_cli.generate import WIDTH, GeneratedCommand

ABOUT = "Teach a small vision model how a vision-language model looks at images. Start with: lfi demo"
PANELS: Mapping[str, Mapping[str, str]] = {
    "Start here": {
        "demo": "demo:demo",
        "datasets": "datasets:datasets",
        "make-scenes": "datasets:make_scenes",
        "reproduce": "reproduce:reproduce",
    },
    "Stage one": {
        "teachers": "extract_teacher:teachers",
        "plan": "plan:plan",
        "extract-teacher": "extract_teacher:extract_teacher",
        "inspect": "inspect:inspect",
        "verify": "verify:verify",
        "pack": "verify:pack",
    },
    "Stage two": {"train": "train:train", "sweep": "sweep:sweep", "export": "report:export"},
    "Scores": {"evaluate": "evaluate:evaluate", "compare": "report:compare", "report": "report:report"},
    "More": {"study": "main:study", "bench": "main:bench"},
}
"""Heading of the help -> command -> module and name of its function."""
STUDY = {"Commands": {"make": "study:make", "score": "study:score"}}
BENCH = {
    "Commands": {
        **{
            name: f"bench:{name}"
            for name in ("codec", "reads", "loader", "index", "maps", "extract", "train", "kernel")
        },
        "plot-kernel": "bench:plot_kernel",
    }
}


class LazyGroup(click.Group):
    """A group whose commands are imported one by one.

    Attributes:
        panels: heading of the help -> command -> module and name of its function.
    """

    def __init__(self, name: str, panels: Mapping[str, Mapping[str, str]], **options: Any) -> None:
        super().__init__(name, no_args_is_help=True, context_settings={"max_content_width": WIDTH}, **options)
        self.panels = panels
        self._places = {name: place for panel in panels.values() for name, place in panel.items()}

    def list_commands(self, ctx: click.Context | None = None) -> list[str]:
        """Names in the order of the help."""
        return list(self._places)

    def get_command(self, ctx: click.Context | None, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is none of this name."""
        if cmd_name not in self._places:
            return None
        module, _, function = self._places[cmd_name].partition(":")
        found: click.Command = getattr(importlib.import_module(f"lfi_cli.{module}"), function)
        found.name = cmd_name
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section a panel."""
        longest = max(map(len, self._places))
        for title, names in self.panels.items():
            commands = {name: self.get_command(ctx, name) for name in names}
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (name.ljust(longest), each.get_short_help_str(WIDTH - longest - 6))
                        for name, each in commands.items()
                        if each is not None
                    ]
                )


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        click.echo(f"lfi {version('lfi-pipeline')}")
        ctx.exit()


app = LazyGroup(
    "lfi",
    PANELS,
    help=ABOUT,
    params=[
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
        )
    ],
)
study = LazyGroup(
    "study",
    STUDY,
    help="Ask people which of two runs' maps is better: make the page, then score what the raters send back.",
)
bench = LazyGroup("bench", BENCH, help="Time and weigh the parts, each behind a check.")


def generated_commands(group: LazyGroup = app) -> list[GeneratedCommand]:
    """Every command, groups included, in the order of the help."""
    found: list[GeneratedCommand] = []
    for name in group.list_commands():
        each = group.get_command(None, name)
        if isinstance(each, LazyGroup):
            found += generated_commands(each)
        elif isinstance(each, GeneratedCommand):
            found.append(each)
    return found


def main() -> None:
    """Run the command line. A terminal or file that cannot show a character shows another in its place."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):
                stream.reconfigure(errors="replace")
    app()

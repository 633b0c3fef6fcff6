"""Entry point of `lfi`: which commands there are, and a typer app in which the one that was asked for has its options.

A module is imported when its command is asked for; the other commands have one line.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer


@dataclass(frozen=True, slots=True)
class Entry:
    """One command.

    Attributes:
        place: module of `lfi_cli` and name of the command in it, as `module:name`.
        help: its one line in the list of commands, which is the first of its own help.
    """

    place: str
    help: str

    def load(self) -> Any:
        """Import the command, a `generate.Command`."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f"lfi_cli.{module}"), name)


PANELS: Mapping[str, Mapping[str, Entry]] = {
    "Start here": {
        "demo": Entry(
            "demo:demo",
            "The whole pipeline in minutes on a laptop: scenes, teacher, cache, two students, scores, report.",
        ),
        "distil": Entry(
            "demo:distil",
            "From a folder of your own images to an exported student: looks at it, extracts, trains, scores, draws.",
        ),
        "datasets": Entry(
            "demo:datasets",
            "Say what a folder of images is, or list the data sets: what each needs on disk and how to obtain it.",
        ),
        "make-scenes": Entry(
            "demo:make_scenes",
            "Render the embedded data set: captioned emoji scenes with exact masks, in COCO's layout.",
        ),
        "reproduce": Entry(
            "plan:reproduce",
            "Run a full-scale recipe: maps, students of every objective and seed, protocols, table and page.",
        ),
    },
    "Stage one": {
        "teachers": Entry(
            "extract_teacher:teachers",
            "List the teachers: image size, grid of a map, kinds of map (the default first), weights. Nothing is loaded.",
        ),
        "plan": Entry(
            "plan:plan",
            "Before a run: bytes, hours, free disk, and when the cache has paid for itself, from a few batches tried here.",
        ),
        "extract-teacher": Entry(
            "extract_teacher:extract_teacher", "Stage one: run the teacher once and cache its interaction maps."
        ),
        "inspect": Entry(
            "inspect:inspect",
            "Show what a cache holds: teacher, kind of map, counts, bytes, quarantined images; or draw samples.",
        ),
        "verify": Entry(
            "inspect:verify",
            "Check every byte of a cache and its images against their recorded checksums; exit with 1 on any fault.",
        ),
        "pack": Entry("inspect:pack", "Write a cache again in the other layout: the same targets, every read checked."),
    },
    "Stage two": {
        "train": Entry("train:train", "Stage two: train students against cached targets. The teacher is not loaded."),
        "sweep": Entry("train:sweep", "Train every combination of a grid of settings, and rank them."),
        "export": Entry(
            "report:export",
            "Write a trained student as a plain timm checkpoint with a model card, checked by loading it through timm.",
        ),
    },
    "Scores": {
        "predict": Entry("evaluate:predict", "Say what is in pictures, and where the student looked for it."),
        "evaluate": Entry(
            "evaluate:evaluate",
            "Score runs by one protocol or several; results are kept in RUN/evaluation/. "
            "Several runs are also shown by seeds.",
        ),
        "compare": Entry(
            "report:compare",
            "Compare objectives in every protocol that lfi evaluate has scored: intervals over seeds, differences, cost.",
        ),
        "report": Entry(
            "report:report", "Write one self-contained HTML page: scores, learning curves and a gallery of maps."
        ),
    },
    "More": {
        "study make": Entry(
            "report:make",
            "Write one self-contained HTML page that shows image, word and both runs' maps, and collects preferences.",
        ),
        "study score": Entry(
            "report:score",
            "Say how often A is preferred to B, with intervals, and how far raters agree with each other and themselves.",
        ),
        "bench codec": Entry("bench:codec", "Codecs of maps by bytes, KL and speed, on real maps of the demo teacher."),
        "bench reads": Entry(
            "bench:reads", "Random reads of whole samples: TargetStore against zarr-python and raw tensorstore."
        ),
        "bench loader": Entry(
            "bench:loader", "The image loader of training with targets against the same loader without."
        ),
        "bench index": Entry("bench:index", "Seconds and memory to open a large index, in a process of its own."),
        "bench maps": Entry("bench:maps", "What a teacher's maps cost over its plain vision forward."),
        "bench extract": Entry(
            "bench:extract",
            "A whole extraction, files to cache, over the same maps on tensors in memory; and where the time goes.",
        ),
        "bench train": Entry(
            "bench:train",
            "What objectives cost in training, what the cache saves, what students save that share a read.",
        ),
        "bench kernel": Entry(
            "bench:kernel", "The interaction-query block against projected keys and values: time, memory and error."
        ),
        "bench gpu": Entry(
            "bench:gpu",
            "All that a GPU can be asked in some minutes: kernels right and timed, a training step, extraction.",
        ),
        "bench plot-kernel": Entry(
            "bench:plot_kernel", "Draw the kernel benchmark's ratios from its CSV, the last run of each device."
        ),
    },
}
"""Heading of the help -> command, in two words where it is of a group."""
GROUPS: Mapping[str, str] = {
    "study": "Ask people which of two runs' maps is better: make the page, then score what the raters send back.",
    "bench": "Time and weigh the parts, each behind a check.",
}
"""First word of the commands of a group -> what the group is for."""


def entries() -> Iterator[tuple[str, Entry]]:
    """Every command with its name, in the order of the help."""
    for names in PANELS.values():
        yield from names.items()


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

"""lfi demo"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from lfi_cli.output import JsonFlag, Result, command, facts, finish, percent

STUDENT = shlex.split(
    "--student vit_tiny_patch16_224 --image-size 64 --patch-size 8 "
    "--student-arg depth=6 --student-arg embed_dim=128 --student-arg num_heads=4 --batch-size 16"
)
LEARNING_RATES = {"none": 5e-4, "lfi": 1e-3}  # the better of 5e-4 and 1e-3 for each, measured on seed 0


@command
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes; a rerun goes on where it stopped.")] = Path(
        "lfi-demo"
    ),
    train: Annotated[int, typer.Option(help="Training scenes.")] = 2000,
    val: Annotated[int, typer.Option(help="Validation scenes.")] = 600,
    epochs: Annotated[int, typer.Option(help="Epochs of each student.")] = 10,
    seed: Annotated[int, typer.Option(help="Of scenes and students.")] = 0,
    as_json: JsonFlag = False,
) -> Result:
    """The whole pipeline in minutes on a laptop: scenes, teacher, cache, two students, scores, report.

    It only chains the public commands and prints each one before it runs, for you to copy and change.

    Example: lfi demo --out lfi-demo
    """
    began = time.monotonic()
    scenes, shards, shards_val = out / "scenes", out / "shards", out / "shards-val"
    _run("make-scenes", "--out", scenes, "--train", train, "--val", val, "--seed", seed)
    extract = ["extract-teacher", "--dataset", "scenes", "--data-root", scenes, "--words", 6]
    _run(*extract, "--out", shards)
    _run(*extract, "--split", "val", "--views", "full", "--out", shards_val)
    inspected = _run("inspect", shards_val, "--pointing")
    runs = {objective: out / "runs" / f"{objective}-{seed}" for objective in ("none", "lfi")}
    scores: dict[str, Any] = {}
    for objective, run in runs.items():
        _run(
            *("train", "--targets", shards, *STUDENT, "--objective", objective),
            *("--learning-rate", LEARNING_RATES[objective]),
            *("--epochs", epochs, "--seed", seed, "--out", run),
        )
        scores[objective] = _run("evaluate", run, "--targets", shards_val)["runs"][str(run)]
    page = _run("report", *runs.values(), "--out", out / "report.html", "--title", "LFI demo")["report"]

    grounding = inspected["pointing"][-1]
    result: Result = {
        "seconds": time.monotonic() - began,
        "report": page,
        "teacher": {"pointing": grounding["pointing"], "mass_in_mask": grounding["mass_in_mask"]},
        "scores": scores,
    }
    rows = [
        ("teacher, peak in the named object", percent(grounding["pointing"])),
        *(
            (
                f"{name}, mAP",
                f"{percent(s['map_seen'])} seen domains, {percent(s['map_heldout'])} held-out domain",
            )
            for name, s in ((name, found["classification"]["scores"]) for name, found in scores.items())
        ),
        ("seconds", f"{result['seconds']:.0f}"),
        ("report", Path(page).resolve()),
    ]
    return finish(result, as_json, lambda console: facts(console, "Done", rows))


def _run(*words: object) -> Result:
    """Print a public command, run it, and return its result. Its own output goes to stderr, as the demo's is stdout.

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

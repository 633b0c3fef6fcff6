"""lfi demo, and how public commands are run one after the other"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer.main

from lfi_cli.generate import command
from lfi_cli.main import app_for
from lfi_cli.output import Result, Shown, facts, percent, show_tree, stderr
from lfi_pipeline.core.options import Option, check

if TYPE_CHECKING:
    from rich.console import Console

STUDENT = shlex.split(
    "--student vit_tiny_patch16_224 --image-size 64 --patch-size 8 "
    "--student-arg depth=6 --student-arg embed_dim=128 --student-arg num_heads=4 --batch-size 16"
)
LEARNING_RATES = {"none": 5e-4, "lfi": 1e-3}  # the better of 5e-4 and 1e-3 for each, measured on seed 0
FILES = {
    "report.html": "scores, curves and maps: open it in a browser",
    "scenes": "the rendered data set, in COCO's layout",
    "shards": "the teacher's maps of the training split",
    "shards-val": "the teacher's maps of the validation split",
    "runs/*": "the two students",
}


def run_command(*words: object) -> Result:
    """Print a public command, run it, and return its result. Its own output goes to stderr, as the caller's is stdout.

    Raises:
        typer.Exit: the command failed and has said so; its cause is the error.
    """
    line = [str(word) for word in words]
    stderr().print(f"\n$ {shlex.join(['lfi', *line])}", style="bold", soft_wrap=True, highlight=False, markup=False)
    group = typer.main.get_command(app_for(line))
    arguments, sys.argv = sys.argv, ["lfi", *line]  # runs record the command that made them
    try:
        # not `group(line, standalone_mode=False)`, which returns an exit code where a command fails
        with contextlib.redirect_stdout(sys.stderr), group.make_context("lfi", line) as context:
            result: Result = group.invoke(context)
    finally:
        sys.argv = arguments
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """Options of `lfi demo`."""

    out: Annotated[Path, Option("Where everything goes; a rerun goes on where it stopped.")] = Path("lfi-demo")
    train: Annotated[int, Option("Training scenes.", ge=1)] = 2000
    val: Annotated[int, Option("Validation scenes.", ge=1)] = 600
    epochs: Annotated[int, Option("Epochs of each student.", ge=1)] = 10
    seed: Annotated[int, Option("Of scenes and students.", ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)


@command(Demo)
def demo(config: Demo) -> Shown:
    """The whole pipeline in minutes on a laptop: scenes, teacher, cache, two students, scores, report.

    It only chains the public commands and prints each one before it runs, for you to copy and change.

    Example: lfi demo --out lfi-demo
    """
    out, seed = config.out, config.seed
    began = time.monotonic()
    scenes, shards, shards_val = out / "scenes", out / "shards", out / "shards-val"
    run_command("make-scenes", "--out", scenes, "--train", config.train, "--val", config.val, "--seed", seed)
    extract = ["extract-teacher", "--dataset", "scenes", "--data-root", scenes, "--words", 6]
    run_command(*extract, "--out", shards)
    run_command(*extract, "--split", "val", "--views", "full", "--out", shards_val)
    inspected = run_command("inspect", shards_val, "--pointing")
    runs = {objective: out / "runs" / f"{objective}-{seed}" for objective in ("none", "lfi")}
    scores: dict[str, Any] = {}
    for objective, run in runs.items():
        run_command(
            *("train", "--targets", shards, *STUDENT, "--objective", objective),
            *("--lr", LEARNING_RATES[objective]),
            *("--epochs", config.epochs, "--seed", seed, "--out", run),
        )
        scores[objective] = run_command("evaluate", run, "--targets", shards_val, "--no-probes")["runs"][str(run)]
    page = run_command("report", *runs.values(), "--out", out / "report.html", "--title", "LFI demo")["report"]

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

    def render(console: Console) -> None:
        facts(console, "Done", rows)
        show_tree(console, out, FILES)

    return Shown(result, render)

"""lfi demo"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lfi_cli.chained import run_command as _run
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
        scores[objective] = _run("evaluate", run, "--targets", shards_val, "--no-probes")["runs"][str(run)]
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

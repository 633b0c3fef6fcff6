"""Kill trainings at random moments, run the same command again until it ends, and print how often each was killed.

Run as a script by test_resume.py: python killing.py PLAN, a JSON file {"seed": n, "kills": n, "runs": [[settings, out],
...]}. Libraries are imported once; every training is a fork of this process, made before any of them was used.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lfi_pipeline.core.options import build
from lfi_pipeline.training import RuntimeConfig, train
from lfi_pipeline.training.config import TrainConfig

FIRST_STEPS = "checkpoints/state.safetensors"


def start(settings: dict[str, Any], out: Path, workers: int) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - progress bars
            torch.set_num_threads(1)
            machine = RuntimeConfig(device="cpu", track=(), workers=workers, checkpoint_minutes=0)
            train([(build(TrainConfig, settings), out)], machine)
            code = 0
        finally:
            os._exit(code)
    return process


def wait(process: int, seconds: float) -> bool:
    """Whether `process` ended by itself, and well, within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            assert status == 0, f"a run ended with status {status}"
            return True
        time.sleep(0.002)
    return False


def steps_done(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b'"event": "train"') if path.is_file() else 0


def disturbed(settings: dict[str, Any], out: Path, kills: int, rng: random.Random) -> list[int]:
    """Train to the end in spite of `kills` kills; returns the steps logged at each kill."""
    seen = []
    for turn in range(kills):
        process = start(settings, out, workers=turn % 2)
        before = steps_done(out)
        while steps_done(out) <= before and not (out / "summary.json").exists():  # something new is there to be lost
            if wait(process, 0.002):
                return seen
        if wait(process, rng.uniform(0, 0.1)):
            return seen
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        seen.append(steps_done(out))
    assert wait(start(settings, out, workers=kills % 2), 60), "the last run did not end"
    return seen


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    rng = random.Random(plan["seed"])
    for settings, out in plan["runs"]:
        sys.stdout.write(json.dumps(disturbed(settings, Path(out), plan["kills"], rng)) + "\n")


if __name__ == "__main__":
    main()

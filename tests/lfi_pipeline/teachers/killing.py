"""Kill extractions at random moments, several processes at a time, and compare what reruns make of the rest.

Run as a script by test_processes.py: python killing.py SCENES EXPECTED WORK TRIALS SEED, where EXPECTED holds an
undisturbed cache of each layout. The teacher's libraries are imported once; every process is a fork of this one, made
before any of them was used.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import tensorstore  # noqa: F401
import zarr.storage  # noqa: F401

from lfi_pipeline.targets.commits import LAYOUTS
from lfi_pipeline.teachers import extract as extraction
from lfi_pipeline.teachers import registry  # noqa: F401
from lfi_pipeline.teachers.config import ShardAssignment

SHARDS = 6


def config(scenes: Path, layout: str = "zarr") -> extraction.ExtractConfig:
    return extraction.ExtractConfig(
        dataset="scenes",
        data_root=scenes,
        words=6,
        samples_per_shard=4,
        batch_size=4,
        kind="relevance",
        layout=layout,
        device="cpu",
    )


def tree(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def start(wanted: extraction.ExtractConfig, out: Path, share: ShardAssignment) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - progress bars
            extraction.POLL_SECONDS = 0.05
            extraction.extract(wanted, out, share=share)
            code = 0
        finally:
            os._exit(code)
    return process


def shares(rng: random.Random) -> list[ShardAssignment]:
    """One to three processes: alone, as ranks of one launch, as an array of jobs, or all over the same shards."""
    count = rng.randint(1, 3)
    kind = rng.choice(["same", "ranks", "ranges"])
    if kind == "ranks":
        return [ShardAssignment(rank=rank, world=count) for rank in range(count)]
    if kind == "ranges":
        edges = [0, *sorted(rng.sample(range(1, SHARDS), count - 1)), SHARDS]
        return [ShardAssignment(first=a, end=b) for a, b in pairwise(edges)]
    return [ShardAssignment() for _ in range(count)]


def trial(wanted: extraction.ExtractConfig, out: Path, rng: random.Random) -> int:
    """Kill processes at random moments until one round is left alone; returns how many died of it."""
    killed = 0
    for _ in range(rng.randint(1, 3)):
        running = [start(wanted, out, share) for share in shares(rng)]
        for victim in rng.sample(running, rng.randint(1, len(running))):
            time.sleep(rng.uniform(0, 1.2))
            os.kill(victim, signal.SIGKILL)
        for process in running:
            if process:
                status = os.waitpid(process, 0)[1]
                killed += status == signal.SIGKILL
                assert status in (0, signal.SIGKILL), f"a process failed with status {status}"
    last = [start(wanted, out, share) for share in shares(rng)]
    for process in last:
        status = os.waitpid(process, 0)[1]
        assert status == 0, f"the rerun failed with status {status}"
    return killed


def main() -> None:
    scenes, expected, work = (Path(argument) for argument in sys.argv[1:4])
    trials, seed = int(sys.argv[4]), int(sys.argv[5])
    undisturbed = {layout: tree(expected / layout) for layout in LAYOUTS}
    drawn = dict.fromkeys(LAYOUTS, 0)
    killed = 0
    for number in range(trials):
        out, rng = work / f"trial-{number}", random.Random(f"{seed}-{number}")
        layout = rng.choice(LAYOUTS)
        drawn[layout] += 1
        killed += trial(config(scenes, layout), out, rng)
        wanted, found = undisturbed[layout], tree(out)
        different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        assert not different, f"trial {number} ({layout}): {different[:5]}"
        shutil.rmtree(out)
    layouts = ", ".join(f"{count} {layout}" for layout, count in drawn.items())
    sys.stdout.write(f"{trials} trials, {killed} processes killed, every cache byte-identical ({layouts})\n")


if __name__ == "__main__":
    main()

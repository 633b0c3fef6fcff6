"""Extractions on one local Ray cluster, with workers that die and workers that fail.

Run as a script by test_ray_engine.py: python raying.py SCENES WORK. The first one is the command itself; what it prints
is all of stdout. What became of the others is written to WORK/ended.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from lfi_cli.main import app
from lfi_pipeline.errors import LFIError
from lfi_pipeline.teachers import ray_engine
from lfi_pipeline.teachers.extract import ExtractConfig
from lfi_pipeline.teachers.shares import Share

make_shard = ray_engine._make_shard  # found in the workers by its name, unlike what this script defines


def noting(config: ExtractConfig, out: str, shard: int, extend: bool) -> Any:
    import torch

    made = make_shard(config, out, shard, extend)
    Path(out).with_name("threads").write_text(f"{os.environ['OMP_NUM_THREADS']} {torch.get_num_threads()}")
    return made


def dying_once(config: ExtractConfig, out: str, shard: int, extend: bool) -> Any:
    """The first worker dies while it holds a shard and writes its files."""
    from lfi_pipeline.targets import writer

    try:
        Path(out).with_name("died").touch(exist_ok=False)
        writer.write_atomic = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    except FileExistsError:
        pass
    return make_shard(config, out, shard, extend)


def dying(*args: Any) -> None:
    os._exit(1)


def failing(config: ExtractConfig, out: str, shard: int, extend: bool) -> Any:
    """A user's error, of a class that takes three arguments."""
    from lfi_pipeline.errors import UnknownNameError
    from lfi_pipeline.teachers.shards import ShardMaker

    def fail(self: ShardMaker, number: int) -> None:
        raise UnknownNameError("tag", "larg", ["large"])

    ShardMaker._begin = fail  # type: ignore[method-assign, assignment]
    return make_shard(config, out, shard, extend)


def words(scenes: Path, out: Path) -> list[str]:
    """The command of what `config` says."""
    named = ["--dataset", "scenes", "--data-root", str(scenes), "--out", str(out), "--kind", "relevance"]
    return ["extract-teacher", *named, "--words", "6", "--samples-per-shard", "8", "--batch-size", "8"]


def config(scenes: Path) -> ExtractConfig:
    return ExtractConfig(
        dataset="scenes",
        data_root=scenes,
        words=6,
        samples_per_shard=8,
        batch_size=8,
        kind="relevance",
        device="cpu",
    )


def main() -> None:
    scenes, work = Path(sys.argv[1]), Path(sys.argv[2])
    shutdown, ray.shutdown = ray.shutdown, lambda: None  # one cluster for all that follows
    ray.init = partial(ray.init, num_cpus=2)
    ended: dict[str, str] = {}

    def run(name: str, worker: Callable[..., Any], retries: int = ray_engine.RETRIES) -> None:
        ray_engine._make_shard, ray_engine.RETRIES = worker, retries
        try:
            ray_engine.extract_on_ray(config(scenes), work / name, share=Share(), cpus_per_task=2)
            ended[name] = "made"
        except LFIError as error:
            ended[name] = f"{type(error).__name__}: {error}"

    ray_engine._make_shard = noting
    code = app(
        [*words(scenes, work / "command"), "--device", "cpu", "--engine", "ray", "--json"], standalone_mode=False
    )
    ended["command"] = str(code["samples"])
    run("dying-once", dying_once)
    run("dying", dying, retries=0)
    run("failing", failing)
    (work / "ended.json").write_text(json.dumps(ended))
    shutdown()


if __name__ == "__main__":
    main()

"""Extractions on one local Ray cluster, with workers that die and workers that fail.

Run as a script by test_ray_engine.py: python raying.py SCENES WORK. The first one is the command itself, and its worker
dies once. What became of all is written to WORK/ended.json.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import ray

from lfi_cli.main import app_for
from lfi_pipeline.core.errors import LFIError
from lfi_pipeline.teachers import ray_engine
from lfi_pipeline.teachers.config import ExtractConfig, ShardAssignment

make_shard = ray_engine._make_shard  # found in the workers by its name, unlike what this script defines


def dying_once(config: ExtractConfig, out: str, shard: int, extend: bool) -> Any:
    """The first worker dies while it holds a shard and writes its files; others note their threads."""
    import torch

    from lfi_pipeline.targets import writer

    try:
        Path(out).with_name("died").touch(exist_ok=False)
        writer.write_atomic = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    except FileExistsError:
        Path(out).with_name("threads").write_text(f"{os.environ['OMP_NUM_THREADS']} {torch.get_num_threads()}")
    return make_shard(config, out, shard, extend)


def dying(*args: Any) -> None:
    os._exit(1)


def failing(config: ExtractConfig, out: str, shard: int, extend: bool) -> Any:
    """A user's error, of a class that takes three arguments."""
    from lfi_pipeline.core.errors import UnknownNameError
    from lfi_pipeline.teachers.shards import ShardMaker

    def fail(self: ShardMaker, number: int) -> None:
        raise UnknownNameError("tag", "larg", ["large"])

    ShardMaker._begin = fail  # type: ignore[method-assign, assignment]
    return make_shard(config, out, shard, extend)


def words(scenes: Path, out: Path) -> list[str]:
    """The command of what `config` says."""
    named = ["--dataset", "scenes", "--data-root", str(scenes), "--out", str(out), "--kind", "relevance"]
    sizes = ["--words", "6", "--samples-per-shard", "8", "--batch-size", "8", "--device", "cpu"]
    return ["extract-teacher", *named, *sizes, "--engine", "ray", "--json"]


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
    ray.init = partial(ray.init, num_cpus=2)
    shutdown, ray.shutdown = ray.shutdown, lambda: None  # starting a cluster is slow
    ray_engine._make_shard = dying_once
    command = words(scenes, work / "command")
    result = app_for(command)(command, standalone_mode=False)
    ended = {"command": str(result["samples"])}
    ctypes.CDLL(None).fflush(None)
    os.dup2(2, 1)  # stdout is what the command printed
    ray.shutdown = shutdown  # of a cluster that was there before, from now on
    for name, worker, retries in (("failing", failing, ray_engine.RETRIES), ("dying", dying, 0)):
        ray_engine._make_shard, ray_engine.RETRIES = worker, retries
        try:
            ray_engine.extract_on_ray(config(scenes), work / name, share=ShardAssignment())
            ended[name] = "made"
        except LFIError as error:
            ended[name] = f"{type(error).__name__}: {error}"
    ended["cluster"] = "up" if ray.is_initialized() else "down"
    (work / "ended.json").write_text(json.dumps(ended))
    shutdown()


if __name__ == "__main__":
    main()

"""Shards as tasks on a Ray cluster: `lfi extract-teacher` with engine `ray` (extra `ray`).

The driver creates the cache, then every worker process joins it as any other process would: what it commits is what one
process alone would have committed. Data root and output must be on storage that all nodes see under one path, and the
package must be installed on all of them; workers of a local cluster inherit PYTHONPATH. Ray gives every worker
OMP_NUM_THREADS = its task's CPUs, unless that is set already, and torch follows it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from lfi_pipeline.core import errors
from lfi_pipeline.core.errors import ConfigError, LFIError
from lfi_pipeline.core.runtime import cpu_threads
from lfi_pipeline.targets import Summary
from lfi_pipeline.teachers.config import ExtractConfig, ShardAssignment
from lfi_pipeline.teachers.extract import Job, open_job, run_shards

Failure = tuple[str, str]  # name of the class in lfi_pipeline.core.errors, message
RETRIES = 3
"""How often a task is tried again after its worker died."""


def extract_on_ray(
    config: ExtractConfig,
    out: Path,
    *,
    share: ShardAssignment,
    extend: bool = False,
    retry_quarantined: bool = False,
    cpus_per_task: float = 1,
    gpus_per_task: float | None = None,
    address: str | None = None,
) -> tuple[Summary, float]:
    """Write the cache `out` with a task a shard; otherwise as `lfi_pipeline.teachers.extract.extract`.

    Args:
        config: what to extract; its `device` is each worker's.
        out: the cache's directory, seen by all nodes.
        share: which shards.
        extend, retry_quarantined: as in `extract`.
        cpus_per_task: CPUs that a task reserves.
        gpus_per_task: GPUs that a task reserves; by default one where the cluster has GPUs and the device is not cpu.
        address: of the cluster; by default what RAY_ADDRESS says, else a local one is started.

    Raises:
        ConfigError: Ray is not installed.
        LFIError: as `extract`; also where every worker that tried a shard died.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError("`engine='ray'` needs Ray: pip install 'lfi-pipeline[ray]'.") from error
    began = time.monotonic()
    out = out.expanduser().absolute()
    config = _absolute(config)
    job = open_job(config, out, share=share, extend=extend, retry_quarantined=retry_quarantined)
    with _results_alone_on_stdout():
        started = not ray.is_initialized()
        if started:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        try:
            if gpus_per_task is None:
                gpus_per_task = 1 if config.device != "cpu" and ray.cluster_resources().get("GPU", 0) else 0
            task = ray.remote(max_retries=RETRIES, num_cpus=cpus_per_task, num_gpus=gpus_per_task)(_make_shard)
            with job.progress(share) as bar:
                running = {
                    task.remote(config, str(out), shard, extend): len(job.writer.shard_range(shard))
                    for shard in share.order(job.pending_shards())
                }
                try:
                    while running:
                        for done in ray.wait(list(running))[0]:
                            _require_done(ray, done)
                            bar.update(running.pop(done))
                finally:
                    for task_left in running:
                        ray.cancel(task_left, force=True)  # a shard that is cut off is made again by the next run
        finally:
            if started:
                ray.shutdown()
    return job.finish(), time.monotonic() - began


@contextmanager
def _results_alone_on_stdout() -> Iterator[None]:
    """Ray's core writes its warnings, as of a worker that died, to stdout, where results go: send them to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)  # what the core has written stands in C's buffer
        os.dup2(stdout, 1)
        os.close(stdout)


def _require_done(ray: Any, done: Any) -> None:
    """Raise what went wrong in a worker; a bug there comes with Ray's account of it."""
    try:
        failed: Failure | None = ray.get(done)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0]
        raise LFIError(
            f"A shard's worker died {RETRIES + 1} times ({first}). Committed shards are safe; mend the cause, then run "
            "the same command again."
        ) from error
    if failed is not None:
        name, message = failed
        kind = getattr(errors, name)
        raise kind.__new__(kind, message)  # some take more than the message


def _make_shard(config: ExtractConfig, out: str, shard: int, extend: bool) -> Failure | None:
    """Make one shard in a worker; returns an error of the user as class name and message, as not all can be pickled."""
    try:
        share = ShardAssignment(first=shard, end=shard + 1)
        job = _job(config, out, extend)
        with (
            cpu_threads(config.threads),
            job.progress(ShardAssignment(first=shard, end=shard + 1, world=2, rank=1)) as silent,
        ):
            run_shards(job, share, silent)
    except LFIError as error:
        return type(error).__name__, str(error)
    return None


@cache
def _job(config: ExtractConfig, out: str, extend: bool) -> Job:
    """The teacher and the data set, read once a worker process."""
    return open_job(config, Path(out), share=ShardAssignment(), extend=extend)


def _absolute(config: ExtractConfig) -> ExtractConfig:
    return replace(config, data_root=config.data_root.expanduser().absolute())

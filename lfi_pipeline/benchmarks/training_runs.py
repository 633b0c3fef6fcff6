"""Runs in memory, stepped as `lfi train` steps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lfi_pipeline.benchmarks.outcome import require
from lfi_pipeline.students import QueryConfig, StudentConfig
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.active import ActiveRun, Piece
from lfi_pipeline.training.clock import EpochClock
from lfi_pipeline.training.config import StreamConfig, TrainConfig
from lfi_pipeline.training.cut import CutTargets
from lfi_pipeline.training.data import IMAGE_EMBEDDING, MAPS, Batch, TargetImages
from lfi_pipeline.training.learner import TOTAL
from lfi_pipeline.training.processes import make_accelerator

_STEPS = 1_000_000  # of the schedule: the rate does not change while timing
_RATE = 1e-4


def make_run(
    store: TargetStore,
    student: StudentConfig,
    objective: str,
    *,
    device: torch.device,
    stream: StreamConfig,
    queries: QueryConfig | None = None,
) -> ActiveRun:
    """Return a run at its first step, multi-label over the cache's classes; nothing of it is written."""
    config = TrainConfig(stream=stream, student=student, queries=queries or QueryConfig(), objective=objective)
    return run_of(config, store, device=device)


def run_of(config: TrainConfig, store: TargetStore, *, device: torch.device) -> ActiveRun:
    """As `make_run`, of a whole configuration."""
    return ActiveRun(
        config,
        Path(store.path) / "no run",
        store=store,
        task="multi-label",
        accelerator=make_accelerator(device.type),
        device=device,
        steps=_STEPS,
        steps_per_epoch=1,
        keep_every=0,
    )


def one_batch(store: TargetStore, stream: StreamConfig, runs: Sequence[ActiveRun], device: torch.device) -> Batch:
    """Return the first `batch_size` samples, with every target, on `device`."""
    sizes = [run.learner.student.size for run in runs]
    images = TargetImages(store, stream, sizes, frozenset({MAPS, IMAGE_EMBEDDING}))
    return images.__getitems__([(0, int(position)) for position in store.usable[: stream.batch_size]]).to(device)


def cut_for(run: ActiveRun, batch: Batch, codec: str) -> CutTargets | None:
    """Decode the maps of `batch` and cut them for the taps of the run's student; None for a run without maps."""
    if MAPS not in run.learner.reads:
        return None
    cut = CutTargets(batch, codec)
    for tap in run.learner.student.taps:
        cut.on(tap.grid)
    return cut


def step(run: ActiveRun, batch: Batch, cut: CutTargets | None, clock: EpochClock) -> dict[str, float]:
    """Take one step on the whole batch.

    Raises:
        BenchmarkError: the step failed.
    """
    losses = run.train_step([Piece(batch, cut, 1.0)], clock)
    finite = bool(np.isfinite(losses[TOTAL]))
    require(finite and run.failure is None, f"A step must succeed, got losses {losses} ({run.failure}).")
    return losses

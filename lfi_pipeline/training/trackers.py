"""The processes that share a run, and where its metrics are shown while it trains."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from lfi_pipeline.core.errors import ConfigError, UnknownNameError


def make_accelerator(device: str) -> Accelerator:
    """Processes and communication are Accelerate's; precision is the run's own setting, whatever launched it."""
    return Accelerator(
        cpu=device == "cpu" or not torch.cuda.is_available(),
        device_placement=False,
        mixed_precision="no",
        # the last tap's value projection has no gradient where nothing reads the queries' final state
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "lfi"


class Trackers:
    """Sends metrics to every tracker that was asked for; `metrics.jsonl` is kept apart from them, always.

    Args:
        run: its directory; TensorBoard writes to `run`/tensorboard.
        names: of `TRACKERS`, or "none" alone.
        config: plain settings, shown by wandb and trackio.
        resume_step: steps already done; TensorBoard hides what an interrupted run logged after them: all of it where
            the run begins anew.

    Raises:
        ConfigError: a tracker is not installed.
        UnknownNameError: no such tracker.
    """

    def __init__(
        self, run: Path, names: Sequence[str], config: Mapping[str, Any], *, resume_step: int | None = None
    ) -> None:
        self._open: list[Any] = []
        for name in resolve(names):
            self._open.append(_start(name, run, dict(config), resume_step))

    def log(self, values: Mapping[str, float | int | str | None], step: int) -> None:
        """Send `values`; those that are None are left out."""
        known = {name: value for name, value in values.items() if value is not None}
        for tracker in self._open:
            tracker.log(known, step=step)

    def close(self) -> None:
        """Finish every tracker; nothing can be logged after."""
        while self._open:
            self._open.pop().finish()


def resolve(names: Sequence[str]) -> list[str]:
    """Return the trackers to start, each once; raises as `Trackers` does, before anything is started."""
    for name in names:
        if name not in (*TRACKERS, "none"):
            raise UnknownNameError("tracker", name, (*TRACKERS, "none"))
    if "none" in names:
        if len(set(names)) > 1:
            raise ConfigError(f"track 'none' must stand alone, got {','.join(names)}.")
        return []
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"`track={name}` needs a package that is not installed. Run: pip install {name}")
    return list(dict.fromkeys(names))


def _start(name: str, run: Path, config: dict[str, Any], resume_step: int | None) -> Any:
    # the accelerate trackers drop every process but the first by themselves
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    tracker: Any
    if name == "tensorboard":
        purge = None if resume_step is None else resume_step + 1
        tracker = TensorBoardTracker("tensorboard", run, purge_step=purge)
    elif name == "wandb":
        # without a key wandb would ask for one at the terminal, and a run must never wait for a person
        mode = None if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") else "offline"
        tracker = WandBTracker(PROJECT, name=run.name, dir=str(run), mode=mode, config=config)
    else:
        tracker = TrackioTracker(PROJECT, name=run.name, config=config)
    tracker.start()
    return tracker

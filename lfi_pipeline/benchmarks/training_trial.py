"""A few steps of a run that is planned, on synthetic photographs and maps: seconds and operations per image."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lfi_pipeline.benchmarks.inputs import photo_cache
from lfi_pipeline.benchmarks.training_step import cut_for, one_batch, run_of, step
from lfi_pipeline.core.device import OperationCounter
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.training.clock import EpochClock
from lfi_pipeline.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTrial:
    """What was measured.

    Attributes:
        student: name of the model.
        size: pixels of its input, (height, width).
        objective: of the run.
        precision: of the run.
        device: where it ran.
        batch_size: images of a step.
        seconds: per image, the median of the steps; the images are in memory.
        operations: floating-point operations of a step per image, forward and backward.
        parameters: that are trained.
    """

    student: str
    size: tuple[int, int]
    objective: str
    precision: str
    device: str
    batch_size: int
    seconds: float
    operations: float
    parameters: int


def time_training(
    config: TrainConfig, *, device: torch.device, batch_size: int, steps: int = 3, maps_shape: tuple[int, int, int, int]
) -> StepTrial:
    """Take a few steps as `config` says, with random weights and 80 classes; nothing is left on disk.

    Reading, decoding and augmenting images is not timed: loader processes do it beside the steps.

    Args:
        config: the run; its cache, augmentation and count of epochs do not matter.
        device: where to step.
        batch_size: images of a step here.
        steps: that are timed, after one that is not.
        maps_shape: (layers, words, rows, columns) of the targets.

    Raises:
        LFIError: a student that cannot be built, or `batch_size` or `steps` below 1.
    """
    if batch_size < 1 or steps < 1:
        raise ConfigError(f"batch_size and steps must be 1 or more, got {batch_size} and {steps}.")
    with tempfile.TemporaryDirectory(prefix="lfi-plan-") as scratch:
        store = photo_cache(Path(scratch), max(2, batch_size), maps_shape=maps_shape)
        data = replace(config.data, targets=store.path, data_root=None, hold_out=(), maps="teacher", words=None)
        data = replace(data, batch_size=batch_size)
        student = replace(config.student, pretrained=False)
        trial = replace(config, data=data, student=student, grad_accum_steps=1, task="multi-label")
        run = run_of(trial, store, device=device)
        batch = one_batch(store, data, [run], device)
        clock = EpochClock(device)

        def once() -> None:
            step(run, batch, cut_for(run, batch, store.spec.codec.name), clock)
            clock.report()  # waits for a CUDA device

        with OperationCounter() as counter:
            once()
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - began)
    return StepTrial(
        student=config.student.name,
        size=run.learner.student.size,
        objective=config.objective,
        precision=config.precision,
        device=str(device),
        batch_size=batch_size,
        seconds=statistics.median(seconds) / batch_size,
        operations=counter.total / batch_size,
        parameters=sum(each.numel() for each in run.learner.parameters() if each.requires_grad),
    )

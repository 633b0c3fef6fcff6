"""Load a trained student from its run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lfi_pipeline.device import resolve_device
from lfi_pipeline.errors import UnknownNameError
from lfi_pipeline.students import Student
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.checkpoint import load_weights
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.learner import build_student
from lfi_pipeline.training.run_dir import BEST, CONFIG, LAST, read_json, recorded_config

WEIGHTS = {"last": LAST, "best": BEST}


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A trained student and what it was trained with."""

    path: Path
    record: dict[str, Any]
    config: TrainConfig
    student: Student
    store: TargetStore
    task: str


def load_run(run: Path, *, device: str = "auto", weights: str = "last", data_root: Path | None = None) -> LoadedRun:
    """Load a checkpoint of `run`: its last one, or its best one.

    Args:
        run: its directory.
        device: `auto` takes CUDA where there is one.
        weights: `last` or `best`.
        data_root: where the data set lies, if not where the run or its cache recorded.

    Raises:
        UnknownNameError: `weights` is neither `last` nor `best`.
        RunError: not a run, or one without a fitting checkpoint.
        TargetsError: the cache it was trained on is gone (its spec says how many classes there are).
    """
    if weights not in WEIGHTS:
        raise UnknownNameError("weights", weights, tuple(WEIGHTS))
    record, config = read_json(run / CONFIG), recorded_config(run)
    store = TargetStore.open(config.stream.targets, data_root=data_root or config.stream.data_root)
    task = str(record.get("task"))
    # the checkpoint holds every weight: timm's own need not be at hand
    student = build_student(replace(config, student=replace(config.student, pretrained=False)), store, task)
    load_weights(run / WEIGHTS[weights], student)
    return LoadedRun(run, record, config, student.to(resolve_device(device)).eval(), store, task)

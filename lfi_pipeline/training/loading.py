"""Load a trained student from its run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lfi_pipeline.device import resolve_device
from lfi_pipeline.errors import UnknownNameError
from lfi_pipeline.students import Student
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.loop import build_student
from lfi_pipeline.training.run_dir import BEST, CONFIG, LAST, config_from, load_checkpoint, read_json

WEIGHTS = {"last": LAST, "best": BEST}


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A trained student and what it was trained with."""

    path: Path
    record: dict[str, Any]
    config: TrainConfig
    student: Student
    store: TargetStore


def load_run(run: Path, *, device: str = "auto", weights: str = "last") -> LoadedRun:
    """Load a checkpoint of `run`: its last one, or its best one.

    Raises:
        UnknownNameError: `weights` is neither `last` nor `best`.
        RunError: not a run, or one without a fitting checkpoint.
        TargetsError: the cache it was trained on is gone (its spec says how many classes there are).
    """
    if weights not in WEIGHTS:
        raise UnknownNameError("weights", weights, WEIGHTS)
    record = read_json(run / CONFIG)
    config = config_from(record.get("settings", {}), run / CONFIG)
    store = TargetStore.open(config.targets, data_root=config.data_root)
    # the checkpoint holds every weight: timm's own need not be at hand
    student = build_student(replace(config, student=replace(config.student, pretrained=False)), store)
    load_checkpoint(run, student, WEIGHTS[weights])
    return LoadedRun(run, record, config, student.to(resolve_device(device)).eval(), store)

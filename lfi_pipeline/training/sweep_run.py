"""Carry out a sweep: run after run, several from one read where they can be, each resumed where it stopped."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from lfi_pipeline.core.errors import ConfigError, LFIError, OutputWriteError, RunError, RunLockedError
from lfi_pipeline.core.io import clear_leftovers
from lfi_pipeline.students.backbone import build_backbone, choose_taps
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import RuntimeConfig, TrainConfig
from lfi_pipeline.training.run_dir import read_summary, write_json
from lfi_pipeline.training.sampler import ResumableBatchSampler, read_of, require_samples
from lfi_pipeline.training.sweep import PlannedRun, combinations_error

RECORD = "sweep.json"


class Train(Protocol):
    """Trains runs of equal streams from one read, as `lfi_pipeline.training.train` does."""

    def __call__(
        self, runs: Sequence[tuple[TrainConfig, Path]], machine: RuntimeConfig, *, command: str = ""
    ) -> Sequence[Mapping[str, Any]]:
        """Train the runs and return a summary for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run of a sweep ended; `error` is None where it is finished."""

    run: PlannedRun
    error: str | None = None


def check_runs(plan: Sequence[PlannedRun], source: Path) -> list[int]:
    """Check the cache and the student of each run, and return its number of steps.

    Args:
        plan: the runs.
        source: the sweep's file, for messages.

    Raises:
        ConfigError: a cache or a student that cannot serve; the message lists all such runs.
    """
    stores: dict[tuple[Path, Path | None], TargetStore] = {}
    students: dict[str, LFIError | None] = {}
    steps, wrong = [], []
    for run in plan:
        try:
            data = run.config.data
            cache = (data.targets, data.data_root)
            if cache not in stores:
                stores[cache] = TargetStore.open(data.targets, data_root=data.data_root)
            steps.append(_steps(run.config, stores[cache]))
            key = repr(run.config.student)
            if key not in students:
                students[key] = _student_error(run.config)
            if error := students[key]:
                raise error
        except LFIError as error:
            wrong.append(f"{run.name}: {error}")
    if wrong:
        raise combinations_error(source, wrong)
    return steps


def groups_of(plan: Sequence[PlannedRun], together: int) -> list[list[PlannedRun]]:
    """Return the unfinished runs of `plan` in groups of up to `together` that one read can feed."""
    reads: dict[Any, list[PlannedRun]] = {}
    for run in plan:
        if not is_finished(run):
            reads.setdefault(read_of(run.config), []).append(run)
    return [runs[i : i + together] for runs in reads.values() for i in range(0, len(runs), together)]


def is_finished(run: PlannedRun) -> bool:
    """Whether a run has a summary. A damaged one counts: the error comes up where it is read."""
    try:
        return read_summary(run.folder) is not None
    except RunError:
        return True


def run_sweep(
    plan: Sequence[PlannedRun],
    out: Path,
    machine: RuntimeConfig,
    *,
    train: Train,
    together: int = 1,
    command: str = "",
    tell: Callable[[str], None] = lambda text: None,
    record: bool = True,
) -> list[Outcome]:
    """Train what is not finished yet. A run that fails is reported and recorded, and the others go on.

    Where a group fails and several of its runs are left, each goes on alone from its last checkpoint, so that the error
    is reported for the run that caused it.

    Args:
        plan: as `plan_sweep` gives it.
        out: directory of the sweep, where `sweep.json` tells how each run stands.
        machine: what it runs on.
        train: `lfi_pipeline.training.train`.
        together: runs fed from one read; each of them takes its memory.
        command: recorded in each run.
        tell: takes a line about what comes next.
        record: write `sweep.json`; one of several processes does.

    Raises:
        ConfigError: `together` below 1.
    """
    if together < 1:
        raise ConfigError(f"together must be 1 or more, got {together}.")
    errors: dict[Path, str] = {}
    groups = groups_of(plan, together)
    begun = len(plan) - sum(map(len, groups))
    if begun:
        tell(f"{begun} of {len(plan)} runs are finished already")
    for group in groups:
        names = ", ".join(run.name for run in group)
        first, last = begun + 1, begun + len(group)
        tell(
            f"run {first} of {len(plan)}: {names}" if first == last else f"runs {first}-{last} of {len(plan)}: {names}"
        )
        errors |= _train_group(group, machine, train, command, tell)
        begun = last
        if record:
            _write_record(out, plan, errors)
    if record:
        _write_record(out, plan, errors)
    return [Outcome(run=run, error=_error(run, errors)) for run in plan]


def _train_group(
    group: Sequence[PlannedRun], machine: RuntimeConfig, train: Train, command: str, tell: Callable[[str], None]
) -> dict[Path, str]:
    try:
        train([(run.config, run.folder) for run in group], machine, command=command)
        return {}
    except LFIError as error:
        reason, elsewhere = str(error), isinstance(error, RunLockedError)
    _free_memory()  # here, since the error's traceback holds the students for as long as it is being handled
    left = [run for run in group if not is_finished(run)]
    if len(left) > 1:
        tell(f"the group failed ({reason}); what is left of it goes on one by one")
        failed: dict[Path, str] = {}
        for run in left:
            failed |= _train_group([run], machine, train, command, tell)
        return failed
    for run in left:
        tell(f"{run.name} is left to another process: {reason}" if elsewhere else f"{run.name} failed: {reason}")
    return {run.folder: reason for run in left}


def _free_memory() -> None:
    """Give back what the students of a failed group took, so that the next run has the device for itself."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was not used


def _error(run: PlannedRun, errors: Mapping[Path, str]) -> str | None:
    """Why a run is not finished; one that was left to another process may be by now."""
    error = errors.get(run.folder)
    return None if error is None or is_finished(run) else error


def _write_record(out: Path, plan: Sequence[PlannedRun], errors: Mapping[Path, str]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise OutputWriteError(f"{out} cannot be made: {cause.strerror or cause}. Choose another `out`.") from cause
    clear_leftovers(out)
    runs = []
    for run in plan:
        error = _error(run, errors)
        state = "failed" if error else "finished" if is_finished(run) else "waiting"
        runs.append({"name": run.name, "state": state} | ({"error": error} if error else {}))
    write_json(out / RECORD, {"runs": runs})


def _steps(config: TrainConfig, store: TargetStore) -> int:
    return ResumableBatchSampler(require_samples(store, config.data), config.data).steps


def _student_error(config: TrainConfig) -> LFIError | None:
    student = dataclasses.replace(config.student, pretrained=False)  # its weights are not needed yet
    try:
        choose_taps(build_backbone(student), student)
    except LFIError as error:
        return error
    return None

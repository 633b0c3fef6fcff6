"""A run's directory: config.json, config.toml, metrics.jsonl, summary.json, checkpoints/; all readable without us."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from lfi_pipeline.core.errors import LFIError, OutputExistsError, OutputWriteError, RunError, RunLockedError
from lfi_pipeline.core.io import clear_leftovers, is_leftover, write_atomic
from lfi_pipeline.core.options import build, current_names, defaults, flatten
from lfi_pipeline.core.parse import parse_json, read_checked, write_recorded
from lfi_pipeline.core.schema import Count, read_as
from lfi_pipeline.training.config import AUTO, TrainConfig, usual_scale


def run_name(config: TrainConfig) -> str:
    """Return STUDENT-OBJECTIVE-SEED, with what makes a run a control or an ablation between them."""
    parts = [config.student.name, config.objective]
    if config.head != "queries":
        parts.insert(1, config.head)
    if config.data.maps != "teacher":
        parts.append(config.data.maps)
    if config.uses_queries and config.queries.state != "persistent":
        parts.append(config.queries.state)
    return "-".join([*parts, str(config.data.seed)]).replace("/", "-")


CONFIG, CONFIG_TOML, METRICS, SUMMARY = "config.json", "config.toml", "metrics.jsonl", "summary.json"
CHECKPOINTS = "checkpoints"
STATE, LAST, BEST = (f"{CHECKPOINTS}/{name}.safetensors" for name in ("state", "last", "best"))

LOCK = "run.lock"
COMES_AND_GOES = frozenset({LOCK, STATE})
"""Files of a run that are not there once it is finished."""

_STARTED = {CHECKPOINTS, LOCK}  # what a run killed at its very beginning has left, beside half-written files
_PLACES = ("targets", "data_root")  # may move between runs: the fingerprint of the cache is compared instead


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return `content` as the bytes of a run's JSON file."""
    return (json.dumps(content, indent=2, default=str) + "\n").encode()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` durably, so that a reader sees the old file or the new one, never a part.

    Raises:
        OutputWriteError: it cannot be written; the old file stands.
    """
    try:
        write_atomic(path, json_bytes(content))
    except OSError as error:
        raise OutputWriteError(
            f"{path} cannot be written: {error.strerror or error}. Free space or mend the permissions, then run the "
            "same command again."
        ) from error


def write_run_json(run: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write a file of a run as `write_json` does, and its checksum where the run is finished."""
    write_recorded(run, name, json_bytes(content))


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a run's files, and compare it with its checksum where the run is finished.

    Raises:
        RunError: missing, damaged, or not a JSON object.
    """
    if not path.exists():
        raise RunError(f"{path.parent} must be a run directory (made by `lfi train`): it has no {path.name}.")
    content = parse_json(read_checked(path), str(path), error=RunError)
    if not isinstance(content, dict):
        raise RunError(f"{path} must be a JSON object, got a {type(content).__name__}.")
    return content


EARLIER_RELEASES = {"head": "linear", "query_scale": "1/sqrt(d)"}
"""Settings that runs of earlier releases do not name: they had no other."""
_GONE = ("queries", "slots")  # which said whether queries were seeded by words or were learned slots
_UNRECORDED = defaults(TrainConfig) | EARLIER_RELEASES


def canonical_settings(settings: Mapping[str, Any], objective: str | None = None) -> dict[str, Any]:
    """Return a run's recorded settings, equal for equal runs whatever release made them: what it did not record is filled
    in, what `auto` stands for (under `objective`, where one is named) is written out, and of no queries nothing is said.

    Raises:
        ConfigError: a value is recorded under two names, or does not fit its older one.
    """
    full = _UNRECORDED | current_names(TrainConfig, settings, strict=False)
    terms = str(objective or full["objective"]).split("+")
    if full["query_scale"] == AUTO:
        full["query_scale"] = usual_scale(terms)
    queries = full["head"] == "queries" or not {"lfi", "presence"}.isdisjoint(terms)
    gone = [*_GONE, *([] if queries else [name for name in full if name == "readout" or name.startswith("query_")])]
    return {name: value for name, value in full.items() if name not in gone}


def read_summary(run: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run, None of any other: one that cannot be read was never finished.

    Raises:
        RunError: it can be read, and is not what was written.
    """
    if not (run / SUMMARY).is_file():
        return None
    try:
        content = parse_json((run / SUMMARY).read_bytes(), str(run / SUMMARY), error=RunError)
    except (OSError, RunError):
        return None
    return read_json(run / SUMMARY) if isinstance(content, dict) else None


_HELD: set[tuple[int, str]] = set()  # process and directory: a lock says nothing within one process


class RunLock:
    """Locks a run's directory, made where it is absent, for this process. The lock ends with the process.

    It is a record lock, which the processes that load data do not inherit: orphaned, they would hold on to it.

    Raises:
        RunLockedError: another process trains there; names it and its machine.
        RunError: the directory cannot be made.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        make_place(run)
        self._key = (os.getpid(), str(run.resolve()))
        if self._key in _HELD:
            raise self._refusal(f"this process ({os.getpid()})")
        try:
            self._descriptor = self._acquire()
        except OSError as error:
            raise RunError(f"{run} cannot be written: {error.strerror or error}. Choose another `out`.") from error
        _HELD.add(self._key)
        for folder in (run, run / CHECKPOINTS):
            clear_leftovers(folder, every=True)

    def _refusal(self, holder: str) -> RunLockedError:
        return RunLockedError(
            f"{self._run} is being trained by {holder}. Wait for it or stop it; the same command then goes on where it "
            "stopped. Or choose another `out`."
        )

    def _acquire(self) -> int:
        path = self._run / LOCK
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if not _lock(descriptor):
                holder = os.read(descriptor, 500).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise self._refusal(holder)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    break
            os.close(descriptor)  # the holder before removed this file; lock the one that stands there now
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
        return descriptor

    def release(self) -> None:
        """Release the lock, and remove the directory where it is empty."""
        with suppress(OSError):
            (self._run / LOCK).unlink(missing_ok=True)  # while it is held, so that no other holder loses its file
        os.close(self._descriptor)
        _HELD.discard(self._key)
        with suppress(OSError):
            (self._run / CHECKPOINTS).rmdir()
            self._run.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _lock(descriptor: int) -> bool:
    """Whether this process now holds the file; true as well where the file system has no locks."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _refuse_slots(run: Path, settings: object) -> None:
    if isinstance(settings, dict) and settings.get("queries") == "learned":
        raise RunError(
            f"{run} was trained with learned slots, which this release does not have: use version 0.1 for it."
        )


def recorded_config(run: Path) -> TrainConfig:
    """Return the settings that `run` was made with. Raises RunError naming what does not fit."""
    settings = read_json(run / CONFIG).get("settings")
    try:
        if not isinstance(settings, dict):
            raise RunError("they are missing")
        _refuse_slots(run, settings)
        kept = {name: value for name, value in settings.items() if name not in _GONE}
        return build(TrainConfig, EARLIER_RELEASES | kept)
    except LFIError as error:
        raise RunError(f"{run / CONFIG}: the settings of this run cannot be read ({error}).") from error


def require_place(run: Path, config: TrainConfig, fingerprint: str) -> None:
    """Check that `run` can be started or go on; nothing is written.

    Args:
        run: its directory.
        config: what is asked for.
        fingerprint: of the cache's spec; the cache may have moved, its content may not have changed.

    Raises:
        OutputExistsError: `run` holds another run (names the settings that differ) or something else.
        RunError: as `recorded_config`.
    """
    if run.exists() and not run.is_dir():
        raise OutputExistsError(f"{run} must be a directory, found a file.")
    if (run / CONFIG).is_file():
        _require_same(run, config, fingerprint)
    elif run.is_dir() and any(entry.name not in _STARTED and not is_leftover(entry.name) for entry in run.iterdir()):
        raise OutputExistsError(f"{run} must be empty or hold a run, found other files. Choose another `out`.")


def make_place(run: Path) -> None:
    """Make the directory of a run. Raises RunError where it cannot be made."""
    try:
        (run / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run} cannot be made: {error.strerror or error}. Choose another `out`.") from error


def _require_same(run: Path, config: TrainConfig, fingerprint: str) -> None:
    record = read_json(run / CONFIG)
    if not isinstance(record.get("settings"), dict):
        raise OutputExistsError(f"{run} holds a {CONFIG} that is not of a run. Choose another `out`.")
    old, new = (
        {name: value for name, value in flatten(each).items() if name not in _PLACES}
        for each in (recorded_config(run), config)
    )
    old["content of the cache"], new["content of the cache"] = record.get("targets_fingerprint"), fingerprint
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if differing:
        shown = "; ".join(f"{name}: {old.get(name)!r} there, {new.get(name)!r} asked" for name in differing)
        raise OutputExistsError(f"{run} holds a run with other settings ({shown}). Choose another `out`.")


class MetricsLog:
    """Appends one JSON object a line.

    Args:
        run: its directory.
        resume_step: steps already done; lines of later steps, and a last line that was torn, are dropped atomically.
        owes_epoch: whether the epoch that ends with `resume_step` is still to be scored: a score of it, written by a
            process that died before it could keep it, is dropped as well.
    """

    def __init__(self, run: Path, resume_step: int | None = None, *, owes_epoch: bool = False) -> None:
        self._path = run / METRICS
        if resume_step is not None and self._path.is_file():
            lines = self._path.read_bytes().splitlines(keepends=True)
            write_atomic(self._path, b"".join(line for line in lines if _is_done(line, resume_step, owes_epoch)))

    def write(self, **values: float | int | str | None) -> None:
        """Append `values`; the line is on disk when this returns."""
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(values) + "\n")
        except OSError as error:
            raise OutputWriteError(f"{self._path} cannot be written: {error.strerror or error}. Free space.") from error


def _is_done(line: bytes, step: int, owes_epoch: bool) -> bool:
    """Whether a line of the metrics is complete and not of a step or a score that is still to come."""
    try:
        values = parse_json(line, METRICS, error=RunError) if line.endswith(b"\n") else None
    except RunError:
        return False
    if not isinstance(values, dict):
        return False
    done, scored = values.get("step", 0), values.get("event") == "val"
    return isinstance(done, int | float) and done <= step and not (owes_epoch and scored and done == step)


# --- reading what training left: whoever takes fields checks them, by `core.schema.read_as` ------------------

TRAINED = (CONFIG, METRICS)
"""Files that every run has from its first step on."""


def is_run(path: Path) -> bool:
    """Whether `path` is the directory of a run that was started."""
    return all((path / name).is_file() for name in TRAINED)


def config_fields(run: Path) -> dict[str, Any]:
    """Read `config.json`. Raises RunError where it is missing, not JSON, or of a student that is not supported any more."""
    fields = read_json(_required(run, CONFIG))
    _refuse_slots(run, fields.get("settings"))
    return fields


def summary_fields(run: Path) -> dict[str, Any] | None:
    """Read `summary.json`, which only a finished run has; None without it. Raises RunError where it is damaged."""
    return read_json(run / SUMMARY) if (run / SUMMARY).is_file() else None


class Event(msgspec.Struct, frozen=True, rename={"kind": "event"}):
    """One line of `metrics.jsonl`: all of its values, and from where they are."""

    kind: str
    step: Count
    values: dict[str, Any]
    origin: str


@dataclass(frozen=True, slots=True)
class Metrics:
    """The events of `metrics.jsonl`, each with its `step`, in the order of steps.

    Attributes:
        train: events of training steps.
        validation: events of validations.
    """

    train: tuple[Event, ...]
    validation: tuple[Event, ...]

    def curve(self, score: str) -> list[tuple[float, float]]:
        """Return (step, value) of a validation score, without the validations in which it is missing or not finite."""
        scored = [event for event in self.validation if event.values.get(score) is not None]
        values = [read_as(float, event.values[score], event.origin, score) for event in scored]
        return [(float(event.step), v) for event, v in zip(scored, values, strict=True) if math.isfinite(v)]


def read_metrics(run: Path) -> Metrics:
    """Read `metrics.jsonl`.

    A resumed run repeats steps: the later line counts. An unfinished last line does not.

    Raises:
        RunError: the file is missing, or a line is not an event; names the line.
    """
    path = _required(run, METRICS)
    train: list[Event] = []
    validation: list[Event] = []
    for number, line in enumerate(read_checked(path).split(b"\n")[:-1], start=1):
        if not line.strip():
            continue
        origin = f"{path}, line {number}"
        values = read_as(dict[str, Any], parse_json(line, origin, error=RunError), origin)
        event = read_as(Event, {**values, "values": values, "origin": origin}, origin)
        if event.kind == "train":
            _drop_from(train, event.step)
        if event.kind in ("train", "val"):
            _drop_from(validation, event.step)
            (train if event.kind == "train" else validation).append(event)
    return Metrics(tuple(train), tuple(validation))


def _drop_from(events: list[Event], step: int) -> None:
    """Remove the events of `step` and later from the end of `events`."""
    while events and events[-1].step >= step:
        events.pop()


def _required(run: Path, name: str) -> Path:
    path = run / name
    if not path.is_file():
        raise RunError(f"{run} must be a training run, but has no {name}. `lfi train` makes one.")
    return path

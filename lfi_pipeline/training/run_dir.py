"""A run's directory: config.json, config.toml, metrics.jsonl, summary.json, checkpoints/; all readable without us."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import LFIError, OutputExistsError, RunError
from lfi_pipeline.core.io import write_atomic
from lfi_pipeline.core.options import build, current_names, flatten, plain
from lfi_pipeline.training import checkpoint
from lfi_pipeline.training.config import TrainConfig


def run_name(config: TrainConfig) -> str:
    """Return STUDENT-OBJECTIVE-SEED, with what makes a run a control or an ablation between them."""
    parts = [config.student.name, config.objective]
    if config.data.maps != "teacher":
        parts.append(config.data.maps)
    if config.uses_queries and config.queries.mode != "text":
        parts.append(config.queries.mode)
    if config.uses_queries and config.queries.state != "persistent":
        parts.append(config.queries.state)
    return "-".join([*parts, str(config.data.seed)]).replace("/", "-")


CONFIG, CONFIG_TOML, METRICS, SUMMARY = "config.json", "config.toml", "metrics.jsonl", "summary.json"
CHECKPOINTS = "checkpoints"
STATE, LAST, BEST = (f"{CHECKPOINTS}/{name}" for name in (checkpoint.STATE, checkpoint.LAST, checkpoint.BEST))

_STARTED = {CHECKPOINTS, CONFIG + ".partial"}  # what a run killed at its very beginning has left
_PLACES = ("targets", "data_root")  # may move between runs: the fingerprint of the cache is compared instead


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` so that a reader sees the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a run's files.

    Raises:
        RunError: missing, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path.parent} must be a run directory (made by `lfi train`): it has no {path.name}.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path} must be a JSON object: {error}.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} must be a JSON object, got a {type(content).__name__}.")
    return content


def recorded_config(run: Path) -> TrainConfig:
    """Return the settings that `run` was made with. Raises RunError naming what does not fit."""
    settings = read_json(run / CONFIG).get("settings")
    try:
        if not isinstance(settings, dict):
            raise RunError("they are missing")
        return build(TrainConfig, settings)
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
    """
    if run.exists() and not run.is_dir():
        raise OutputExistsError(f"{run} must be a directory, found a file.")
    if (run / CONFIG).is_file():
        _require_same(run, config, fingerprint)
    elif run.is_dir() and {entry.name for entry in run.iterdir()} - _STARTED:
        raise OutputExistsError(f"{run} must be empty or hold a run, found other files. Choose another `out`.")


def make_place(run: Path) -> None:
    """Make the directory of a run. Raises RunError where it cannot be made."""
    try:
        (run / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run} cannot be made: {error.strerror or error}. Choose another `out`.") from error


def _require_same(run: Path, config: TrainConfig, fingerprint: str) -> None:
    record, new = read_json(run / CONFIG), flatten(config)
    old = record.get("settings")
    if not isinstance(old, dict):
        raise OutputExistsError(f"{run} holds a {CONFIG} that is not of a run. Choose another `out`.")
    old = {
        name: plain(value)
        for name, value in current_names(TrainConfig, old, strict=False).items()
        if name not in _PLACES
    }
    new = {name: value for name, value in new.items() if name not in _PLACES}
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
    """

    def __init__(self, run: Path, resume_step: int | None = None) -> None:
        self._path = run / METRICS
        if resume_step is not None and self._path.is_file():
            lines = self._path.read_bytes().splitlines(keepends=True)
            write_atomic(self._path, b"".join(line for line in lines if _is_done(line, resume_step)))

    def write(self, **values: float | int | str | None) -> None:
        """Append `values`; the line is on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")


def _is_done(line: bytes, step: int) -> bool:
    """Whether a line of the metrics is whole and not of a step after `step`."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return False
    return isinstance(values, dict) and values.get("step", 0) <= step

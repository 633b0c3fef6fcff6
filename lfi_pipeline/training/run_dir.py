"""A run's directory: config.json, metrics.jsonl, summary.json and checkpoints/, all readable without this project."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lfi_pipeline.data.replay import Augmentation
from lfi_pipeline.errors import OutputExistsError, RunError
from lfi_pipeline.students import QueryConfig, StudentConfig
from lfi_pipeline.training.config import TrainConfig

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
LAST = "checkpoints/last.safetensors"
BEST = "checkpoints/best.safetensors"


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


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Return `config` as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain


def config_from(settings: Mapping[str, Any], where: Path) -> TrainConfig:
    """Undo `settings_of`. Raises RunError naming what does not fit."""
    try:
        plain = dict(settings)
        student = dict(plain["student"])
        student["taps"] = tuple(student["taps"])
        return TrainConfig(
            **plain
            | {
                "targets": Path(plain["targets"]),
                "data_root": Path(plain["data_root"]) if plain["data_root"] else None,
                "student": StudentConfig(**student),
                "queries": QueryConfig(**plain["queries"]),
                "augmentation": Augmentation(**plain["augmentation"]),
                "hold_out": tuple(plain["hold_out"]),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{where}: the settings of this run cannot be read ({error}).") from error


def prepare(run: Path, config: TrainConfig) -> bool:
    """Make `run` ready for a fresh start; returns True instead if it already holds this very run, finished.

    An unfinished run of the same settings is started again.

    Raises:
        OutputExistsError: `run` holds another run (names the settings that differ) or something else.
    """
    if run.exists() and not run.is_dir():
        raise OutputExistsError(f"{run} must be a directory, found a file.")
    if run.is_dir() and any(run.iterdir()):
        if not (run / CONFIG).is_file():
            raise OutputExistsError(f"{run} must be empty or hold a run, found other files. Choose another --out.")
        old, new = read_json(run / CONFIG).get("settings"), settings_of(config)
        if not isinstance(old, dict):
            raise OutputExistsError(f"{run} holds a {CONFIG} that is not of a run. Choose another --out.")
        differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if differing:
            shown = "; ".join(f"{name}: {old.get(name)!r} there, {new.get(name)!r} asked" for name in differing)
            raise OutputExistsError(f"{run} holds a run with other settings ({shown}). Choose another --out.")
        if (run / SUMMARY).is_file():
            return True
        (run / METRICS).unlink(missing_ok=True)
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run} cannot be made: {error.strerror or error}. Choose another --out.") from error
    return False


def save_checkpoint(run: Path, model: nn.Module, *, step: int) -> None:
    """Replace the last checkpoint atomically."""
    path = run / LAST
    partial = path.with_suffix(".partial")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, partial, metadata={"step": str(step)})
    partial.replace(path)


def load_checkpoint(run: Path, model: nn.Module, checkpoint: str = LAST) -> None:
    """Load a checkpoint, `LAST` or `BEST`, into `model`.

    Raises:
        RunError: there is none, it cannot be read, or it does not fit.
    """
    path = run / checkpoint
    if not path.is_file():
        raise RunError(f"{run} has no checkpoint yet ({checkpoint}). Train it first.")
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise RunError(f"{path} does not fit the student of {run / CONFIG}: {error}") from error


class MetricsLog:
    """Appends one JSON object a line."""

    def __init__(self, run: Path) -> None:
        self._path = run / METRICS

    def write(self, **values: float | int | str | None) -> None:
        """Append `values`; the line is on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")

"""Read what training left in a run's directory: its record, its metrics and its summary.

Whatever compares runs (reports, leaderboards, protocol `convergence`) reads them through this module. Fields are
checked when they are taken, by `core.schema.Fields`, whose errors name the file and the field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.core.schema import Fields, read_text
from lfi_pipeline.training.run_dir import CONFIG, METRICS, SUMMARY

TRAINED = (CONFIG, METRICS)
"""Files that every run has from its first step on."""


def is_run(path: Path) -> bool:
    """Whether `path` is the directory of a run that was started."""
    return all((path / name).is_file() for name in TRAINED)


def read_config(run: Path) -> Fields:
    """Read `config.json`. Raises RunError where it is missing or not a JSON object."""
    return Fields.read(_required(run, CONFIG))


def read_summary(run: Path) -> Fields | None:
    """Read `summary.json`, which only a finished run has; None without it. Raises RunError where it is damaged."""
    path = run / SUMMARY
    return Fields.read(path) if path.is_file() else None


@dataclass(frozen=True, slots=True)
class Metrics:
    """The events of `metrics.jsonl`, each with its `step`, in the order of steps.

    Attributes:
        train: events of training steps.
        validation: events of validations.
    """

    train: tuple[Fields, ...]
    validation: tuple[Fields, ...]

    def curve(self, score: str) -> list[tuple[float, float]]:
        """Return (step, value) of a validation score, without the validations in which it is missing or not finite."""
        values = ((event.integer("step"), event.number_or_none(score)) for event in self.validation)
        return [(float(step), value) for step, value in values if value is not None and math.isfinite(value)]


def read_metrics(run: Path) -> Metrics:
    """Read `metrics.jsonl`.

    A resumed run repeats steps: the later line counts. An unfinished last line does not.

    Raises:
        RunError: the file is missing, or a line is not an event; names the line.
    """
    path = _required(run, METRICS)
    train: list[Fields] = []
    validation: list[Fields] = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], start=1):
        if not line.strip():
            continue
        fields = Fields.parse(line, f"{path}, line {number}")
        event, step = fields.text("event"), fields.integer("step")
        if event == "train":
            _drop_from(train, step)
        if event in ("train", "val"):
            _drop_from(validation, step)
            (train if event == "train" else validation).append(fields)
    return Metrics(tuple(train), tuple(validation))


def _drop_from(events: list[Fields], step: int) -> None:
    """Remove the events of `step` and later from the end of `events`."""
    while events and events[-1].integer("step") >= step:
        events.pop()


def _required(run: Path, name: str) -> Path:
    path = run / name
    if not path.is_file():
        raise RunError(f"{run} must be a training run, but has no {name}. `lfi train` makes one.")
    return path

"""What every protocol of evaluation shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lfi_pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Which weights of a run to score, and on what machine.

    Attributes:
        weights: `last` or `best`.
        device: `auto` takes CUDA where there is one.
        data_root: where the run's data set lies, if it has moved since the run.
        workers: loader processes.
    """

    weights: str = "last"
    device: str = "auto"
    data_root: Path | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"workers must be 0 or more, got {self.workers}.")

"""Weights of the terms of an objective, constant or moving over the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lfi_pipeline.errors import ConfigError, UnknownNameError

WEIGHT_SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True, slots=True)
class Weight:
    """Weight of a term: `0.1` stays, `0.1:cosine` and `0.1:linear` fall to zero at the end of the run.

    Attributes:
        value: at the start.
        schedule: one of `WEIGHT_SCHEDULES`.
    """

    value: float
    schedule: str = "constant"

    def __post_init__(self) -> None:
        if self.schedule not in WEIGHT_SCHEDULES:
            raise UnknownNameError("weight schedule", self.schedule, WEIGHT_SCHEDULES)
        if not 0 <= self.value < math.inf:
            raise ConfigError(f"The weight of a term must be 0 or more, got {self.value}.")

    @classmethod
    def parse(cls, text: str | float) -> Weight:
        """Read `0.1` or `0.1:cosine`.

        Raises:
            ConfigError: not a number.
            UnknownNameError: no such schedule.
        """
        number, colon, schedule = str(text).partition(":")
        try:
            value = float(number)
        except ValueError:
            raise ConfigError(f"A weight must be a number, such as 0.1 or 0.1:cosine, got {text!r}.") from None
        return cls(value, schedule if colon else "constant")

    def __str__(self) -> str:
        return repr(self.value) if self.schedule == "constant" else f"{self.value!r}:{self.schedule}"

    def at(self, progress: float) -> float:
        """Value at `progress` in [0, 1] of the run."""
        match self.schedule:
            case "cosine":
                return self.value * 0.5 * (1 + math.cos(math.pi * progress))
            case "linear":
                return self.value * (1 - progress)
        return self.value


DEFAULT_WEIGHTS = {
    "lfi": Weight(0.05),
    "embedding": Weight(0.3),
    "logits": Weight(0.02),
    "presence": Weight(0.1),
}
"""By term: the best of those tried on the scenes (README, "What was measured"); `presence` is not tuned."""

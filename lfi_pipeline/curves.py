"""Learning curves: when they reach a score, and what they are at a step. Imports nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Curve = Sequence[tuple[float, float]]
"""(step, score) pairs in the order of steps."""


def steps_to_reach(curve: Curve, score: float) -> float | None:
    """The step at which the curve first reaches `score`, linear between evaluations; None if it never does.

    A curve that starts at or above the score reaches it at its first evaluation: nothing earlier is known.
    """
    before: tuple[float, float] | None = None
    for step, value in curve:
        if value >= score:
            if before is None or not math.isfinite(before[1]):
                return float(step)
            return before[0] + (step - before[0]) * (score - before[1]) / (value - before[1])
        before = (step, value)
    return None


def score_at(curve: Curve, step: float) -> float | None:
    """The score at `step`, linear between evaluations; None before the first and after the last."""
    for (first, low), (second, high) in itertools.pairwise(curve):
        if first <= step <= second:
            return low + (high - low) * (step - first) / (second - first)
    return float(curve[0][1]) if len(curve) == 1 and curve[0][0] == step else None

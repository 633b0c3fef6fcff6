"""Means with honest intervals, and means of curves. Pure functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lfi_pipeline.curves import Curve


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the half width of its 95 % interval, which is None for a single value."""

    mean: float
    half: float | None
    count: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half is None else self.mean + self.half

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, 0 where it does not or where there is none."""
        if self.half is None or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1


def t_coverage(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's t with a whole number of degrees of freedom.

    The finite trigonometric series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}.")
    theta = math.atan(t / math.sqrt(degrees))
    sine, cosine_squared = math.sin(theta), math.cos(theta) ** 2
    odd = degrees % 2
    total, term = 0.0, math.cos(theta) if odd else 1.0
    for k in range(degrees // 2):
        total += term
        term *= cosine_squared * (2 * k + (2 if odd else 1)) / (2 * k + (3 if odd else 2))
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def t_quantile(degrees: int, coverage: float = 0.95) -> float:
    """The t with P(|T| <= t) = `coverage`, by bisection."""
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be in (0, 1), got {coverage}.")
    low, high = 0.0, 1.0
    while t_coverage(high, degrees) < coverage:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_coverage(middle, degrees) < coverage else (low, middle)
    return (low + high) / 2


def _variance(values: Sequence[float], mean: float) -> float:
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and Student-t 95 % interval over seeds; None for no values."""
    if not values:
        return None
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    return Estimate(mean, t_quantile(n - 1) * math.sqrt(_variance(values, mean) / n), n)


def difference(left: Mapping[int, float], right: Mapping[int, float]) -> Estimate | None:
    """The mean of `left - right` with a 95 % interval; both map a seed to its value.

    The same seeds on both sides are paired. Otherwise the variances add (Welch) with the degrees of freedom
    of the smaller side, which errs towards the wider interval. `count` is the smaller number of seeds; a side
    with one seed leaves no interval.
    """
    if not left or not right:
        return None
    if left.keys() == right.keys():
        return estimate([left[seed] - right[seed] for seed in sorted(left)])
    first, second = list(left.values()), list(right.values())
    means = math.fsum(first) / len(first), math.fsum(second) / len(second)
    n = min(len(first), len(second))
    if n == 1:
        return Estimate(means[0] - means[1], None, 1)
    spread = _variance(first, means[0]) / len(first) + _variance(second, means[1]) / len(second)
    return Estimate(means[0] - means[1], t_quantile(n - 1) * math.sqrt(spread), n)


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float, float, float]]:
    """(step, mean, lowest, highest) at every step that all the curves have."""
    if not curves:
        return []
    tables = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    rows = []
    for step in shared:
        values = [table[step] for table in tables]
        rows.append((step, math.fsum(values) / len(values), min(values), max(values)))
    return rows


def thin(curve: Curve, count: int) -> list[tuple[float, float]]:
    """At most `count` points: means of neighbouring points; values that are not finite are dropped."""
    points = [(step, value) for step, value in curve if math.isfinite(value)]
    if len(points) <= count:
        return points
    edges = [round(i * len(points) / count) for i in range(count + 1)]
    bins = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in bins]

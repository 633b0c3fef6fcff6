"""Means with honest intervals, and means of curves. Pure functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lfi_pipeline.evaluation.metrics import Curve

LEVEL = 0.05
"""p values below it are marked."""


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


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """A mean difference with its interval and two-sided p value, both None where a side has a single seed.

    `count` is the smaller number of seeds; `paired` tells whether seeds were compared one by one.
    """

    p: float | None
    paired: bool


def _half(error: float, degrees: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, degrees)) * error


def _p_value(mean: float, error: float, degrees: float) -> float:
    from scipy.stats import t

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(t.sf(abs(mean) / error, degrees))


def _error(values: Sequence[float], mean: float) -> float:
    """Standard error of the mean of two values or more."""
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and Student-t 95 % interval over seeds; None for no values."""
    if not values:
        return None
    n = len(values)
    mean = math.fsum(values) / n
    return Estimate(mean, None if n == 1 else _half(_error(values, mean), n - 1), n)


def difference(left: Mapping[int, float], right: Mapping[int, float]) -> Difference | None:
    """The mean of `left - right`, its 95 % interval and the p value of a t test; both map a seed to its value.

    The same seeds on both sides are paired. Otherwise it is Welch's test, for unequal variances, with the degrees of
    freedom of Welch and Satterthwaite.
    """
    if not left or not right:
        return None
    paired = left.keys() == right.keys()
    if paired:
        gaps = [left[seed] - right[seed] for seed in left]
        mean, count = math.fsum(gaps) / len(gaps), len(gaps)
    else:
        means = [math.fsum(side.values()) / len(side) for side in (left, right)]
        mean, count = means[0] - means[1], min(len(left), len(right))
    if count == 1:
        return Difference(mean, None, 1, None, paired)
    if paired:
        error, degrees = _error(gaps, mean), count - 1.0
    else:
        errors = [_error(list(side.values()), m) for side, m in zip((left, right), means, strict=True)]
        error = math.hypot(*errors)
        shares = [
            (e / error) ** 4 / (len(side) - 1) if error else 0 for e, side in zip(errors, (left, right), strict=True)
        ]
        degrees = 1 / sum(shares) if error else count - 1.0
    return Difference(mean, _half(error, degrees), count, _p_value(mean, error, degrees), paired)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in the same order (Holm, Scandinavian Journal of Statistics 6, 1979).

    Calling significant what stays under 0.05 keeps the chance of any false claim among all of them under 5 %.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


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

"""Statistics of paired comparisons: intervals of a share, a sign test, agreement between raters. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

REPLICATES = 10_000

Interval = tuple[float, float]


def wilson(successes: int, trials: int, coverage: float = 0.95) -> Interval | None:
    """Wilson's score interval of a share, for independent trials (Wilson, JASA 1927); None without trials."""
    if not trials:
        return None
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(coverage, method="wilson")
    return float(found.low), float(found.high)


def sign_test(first: int, second: int) -> float | None:
    """Two-sided exact sign test of `first` against `second` preferences; None where there are none."""
    if not first + second:
        return None
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue)


def odds(share: float) -> float | None:
    """A share as a ratio to the rest, share / (1 - share); None where the rest is nothing."""
    return None if share >= 1 else share / (1 - share)


def crossed_bootstrap(
    answers: npt.NDArray[np.float64], *, seed: int = 0, replicates: int = REPLICATES, coverage: float = 0.95
) -> Interval | None:
    """Percentile interval of the share of ones, with raters and items drawn anew, each with replacement.

    The pigeonhole bootstrap of Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007: an answer
    counts as often as its rater was drawn times as often as its item was. It allows for answers of one rater being
    alike, and answers to one item being alike; it is somewhat too wide rather than too narrow. With one rater only
    items are drawn, and nothing is said of other raters.

    Args:
        answers: [raters, items], 1 or 0, NaN where a rater gave no preference or no answer.
        seed: of the draws.
        replicates: how many.
        coverage: of the interval.

    Returns:
        None where there is no answer.
    """
    given = ~np.isnan(answers)
    if not given.any():
        return None
    raters, items = answers.shape
    generator = np.random.default_rng(seed)
    rater_counts = generator.multinomial(raters, np.full(raters, 1 / raters), size=replicates).astype(np.float64)
    item_counts = generator.multinomial(items, np.full(items, 1 / items), size=replicates).astype(np.float64)
    ones = ((rater_counts @ np.nan_to_num(answers)) * item_counts).sum(1)
    total = ((rater_counts @ given.astype(np.float64)) * item_counts).sum(1)
    shares = ones[total > 0] / total[total > 0]
    if not len(shares):
        return None
    low, high = np.quantile(shares, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Agreement between raters on nominal values, 1 for full agreement and 0 for chance; answers may be missing.

        alpha = 1 - D_o / D_e = 1 - (n - 1) (n - sum_c o_cc) / (n^2 - sum_c n_c^2)

    with coincidences o_ck = sum_u (pairs of values c, k in unit u) / (m_u - 1), n_c = sum_k o_ck and n = sum_c n_c:
    Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section C.

    Args:
        units: for each item, the values that its raters gave, in any order.

    Returns:
        None where no item has two answers, or where all answers are the same value (alpha is 0 / 0 then).
    """
    agreed = 0.0  # sum_c o_cc
    marginal: Counter[Hashable] = Counter()  # n_c
    for values in units:
        if len(values) < 2:
            continue
        for value, count in Counter(values).items():
            agreed += count * (count - 1) / (len(values) - 1)
            marginal[value] += count
    n = sum(marginal.values())
    expected = n * n - sum(count * count for count in marginal.values())
    if not expected:
        return None
    return float(1 - (n - 1) * (n - agreed) / expected)


def majority(counts: Mapping[str, int], first: str, second: str) -> str | None:
    """Which of two answers an item got more often; None for a tie."""
    if counts.get(first, 0) == counts.get(second, 0):
        return None
    return first if counts.get(first, 0) > counts.get(second, 0) else second

"""What raters prefer, how sure that is, and how far they agree with each other and with themselves.

The study is a two-alternative forced choice with an escape (no preference). The paper reports that its maps were
preferred 2.7 times as often as a baseline's. How it put the question and counted was not known to us when this was
written, so the ratio here is this project's reading of it: answers for A over answers for B, ties left out.
"""

from __future__ import annotations

import statistics as python_statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lfi_pipeline.study.answers import CATCH, RUNS, SIDES, TIE, Answer, RaterAnswers, read_answers, read_key

REPLICATES = 10_000

Interval = tuple[float, float]


def wilson(successes: int, trials: int, coverage: float = 0.95) -> Interval | None:
    """Wilson's score interval of a share, for independent trials (Wilson, JASA 1927); None without trials."""
    if not trials:
        return None
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(coverage, method="wilson")
    return float(interval.low), float(interval.high)


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
    answered = ~np.isnan(answers)
    if not answered.any():
        return None
    raters, items = answers.shape
    generator = np.random.default_rng(seed)
    rater_counts = generator.multinomial(raters, np.full(raters, 1 / raters), size=replicates).astype(np.float64)
    item_counts = generator.multinomial(items, np.full(items, 1 / items), size=replicates).astype(np.float64)
    ones = ((rater_counts @ np.nan_to_num(answers)) * item_counts).sum(1)
    total = ((rater_counts @ answered.astype(np.float64)) * item_counts).sum(1)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """Answers to pairs, each pair counted at its first showing alone.

    Attributes:
        a: answers that prefer run A's map.
        b: those that prefer run B's.
        ties: those that prefer neither.
        share: a / (a + b); None without a preference.
        wilson: 95 % Wilson interval of `share`, as if all answers were independent: too narrow with several raters.
    """

    a: int
    b: int
    ties: int
    share: float | None
    wilson: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """How raters agree with themselves: items shown a second time with sides swapped."""

    count: int
    same: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RaterScore:
    """One rater.

    Attributes:
        rater: name or code.
        preference: of this rater.
        repeats: answers given twice, and how many of them were for the same map.
        left: share of left among left and right; far from a half, the rater favours a side.
        catch: share of catch trials in which the true map was preferred to the shuffled one; None without any.
        seconds: median time of an answer.
        unanswered: items of the study, second showings included, that the file holds no answer to.
    """

    rater: str
    preference: Preference
    repeats: Repeats
    left: float | None
    catch: float | None
    seconds: float
    unanswered: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyScore:
    """The scores of a study.

    Attributes:
        study: its id.
        a: run A.
        b: run B.
        maps: which maps were shown.
        preference: over all raters.
        ratio: a / b, as in "2.7x"; None where nobody preferred B.
        ratio_interval: 95 %, from `bootstrap`; an end that is unbounded is None.
        bootstrap: 95 % interval of `preference.share` with raters and items drawn anew: the one to report.
        sign_test: two-sided p of a = b over items, each voting once by the majority of its raters.
        sign_test_answers: the same over answers as if independent: too small with several raters.
        agreement: Krippendorff's alpha (A, B or tie) between raters; None for one rater or where nothing varies.
        repeats: of all raters.
        raters: each by itself.
        domains: preference by visual domain.
        notes: what a reader must know of these numbers.
    """

    study: str
    a: str
    b: str
    maps: str
    preference: Preference
    ratio: float | None
    ratio_interval: tuple[float | None, float | None] | None
    bootstrap: Interval | None
    sign_test: float | None
    sign_test_answers: float | None
    agreement: float | None
    repeats: Repeats
    raters: tuple[RaterScore, ...]
    domains: dict[str, Preference]
    notes: tuple[str, ...]


def score_study(files: Sequence[Path], key: Path, *, seed: int = 0) -> StudyScore:
    """Score the raters' `files` with the study's `key`.

    Args:
        files: one of each rater, as the page saved them; one that stopped early counts with what it holds.
        key: what `make_study` wrote beside the page.
        seed: of the bootstrap.

    Raises:
        StudyError: a file or the key is not what it should be; names file, field and item.
    """
    study = read_key(key)
    raters = read_answers(files, study)
    showings = sum(1 + item.repeated for item in study.items)
    first = {rater.rater: _pairs(rater) for rater in raters}
    every = [answer for answers in first.values() for answer in answers]
    preference = _preference(every)
    interval = crossed_bootstrap(_matrix(list(first.values())), seed=seed)
    by_item: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for answer in every:
        by_item[answer.item.id][answer.chosen] += 1
    votes = Counter(majority(counts, *RUNS) for counts in by_item.values())
    agreement = krippendorff_alpha([list(counts.elements()) for counts in by_item.values()])
    each = tuple(_rater(rater, showings) for rater in raters)
    domains = sorted({answer.item.domain for answer in every})
    return StudyScore(
        study=study.study,
        a=study.a,
        b=study.b,
        maps=study.maps,
        preference=preference,
        ratio=preference.a / preference.b if preference.b else None,
        ratio_interval=None if interval is None else (odds(interval[0]), odds(interval[1])),
        bootstrap=interval,
        sign_test=sign_test(votes["a"], votes["b"]),
        sign_test_answers=sign_test(preference.a, preference.b),
        agreement=agreement,
        repeats=Repeats(count=sum(r.repeats.count for r in each), same=sum(r.repeats.same for r in each)),
        raters=each,
        domains={domain: _preference(x for x in every if x.item.domain == domain) for domain in domains},
        notes=_notes(each, agreement, study.passed_over),
    )


def _pairs(rater: RaterAnswers) -> list[Answer]:
    """The answers that count: to pairs, at their first showing."""
    return [answer for answer in rater.answers if answer.showing == 1 and not answer.item.is_catch]


def _preference(answers: Iterable[Answer]) -> Preference:
    counts = Counter(answer.chosen for answer in answers)
    decided = counts["a"] + counts["b"]
    return Preference(
        a=counts["a"],
        b=counts["b"],
        ties=counts[TIE],
        share=counts["a"] / decided if decided else None,
        wilson=wilson(counts["a"], decided),
    )


def _matrix(raters: Sequence[Sequence[Answer]]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """[raters, items]: 1 for A, 0 for B, NaN for a tie or no answer."""
    names = sorted({answer.item.id for answers in raters for answer in answers})
    place = {name: column for column, name in enumerate(names)}
    matrix = np.full((len(raters), len(names)), np.nan)
    for row, answers in enumerate(raters):
        for answer in answers:
            if answer.chosen != TIE:
                matrix[row, place[answer.item.id]] = answer.chosen == RUNS[0]
    return matrix


def _rater(rater: RaterAnswers, showings: int) -> RaterScore:
    chosen: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for answer in rater.answers:
        chosen[answer.item.id][answer.showing] = answer.chosen
    twice = [both for both in chosen.values() if len(both) == 2]
    sides = Counter(answer.side for answer in rater.answers if answer.side != TIE)
    catch = [answer.chosen == CATCH[0] for answer in rater.answers if answer.item.is_catch]
    return RaterScore(
        rater=rater.rater,
        preference=_preference(_pairs(rater)),
        repeats=Repeats(count=len(twice), same=sum(both[1] == both[2] for both in twice)),
        left=sides[SIDES[0]] / sides.total() if sides else None,
        catch=sum(catch) / len(catch) if catch else None,
        seconds=python_statistics.median(answer.milliseconds for answer in rater.answers) / 1000,
        unanswered=showings - len(rater.answers),
    )


def _notes(raters: Sequence[RaterScore], agreement: float | None, passed_over: Mapping[str, int]) -> tuple[str, ...]:
    notes = []
    if len(raters) == 1:
        notes.append("One rater: there is no agreement to measure, and the interval says nothing of other raters.")
    elif agreement is None:
        notes.append("Agreement is not defined: no item has two answers, or all answers are the same.")
    short = [f"{rater.rater} ({rater.unanswered})" for rater in raters if rater.unanswered]
    if short:
        notes.append(f"Stopped early, with so many showings unanswered: {', '.join(short)}.")
    lacking = [f"{count} of run {name.upper()}" for name, count in passed_over.items() if name in RUNS and count]
    if lacking:
        notes.append(f"Words that a run has no map of were left out: {', '.join(lacking)}.")
    return tuple(notes)

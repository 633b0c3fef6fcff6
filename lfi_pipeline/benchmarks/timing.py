"""Timings that can be compared: the cases take turns in every round, and the median over rounds counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from tqdm import tqdm

from lfi_pipeline.errors import ConfigError


def interleaved(
    cases: Mapping[str, Callable[[], object]], rounds: int, *, name: str, warm_up: int = 1
) -> dict[str, float]:
    """Return the median seconds of each case, taken in turns as `rounds_of` says; the arguments are the same."""
    taken = rounds_of(cases, rounds, name=name, warm_up=warm_up)
    return {case: statistics.median(values) for case, values in taken.items()}


def rounds_of(
    cases: Mapping[str, Callable[[], object]], rounds: int, *, name: str, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each case in each round.

    What slows the machine for a while slows every case of a round alike. The order turns by one from round to round,
    so that no case always follows the same other one.

    Args:
        cases: what to time, by name.
        rounds: how often each is timed.
        name: shown at the progress bar.
        warm_up: rounds that do not count.

    Raises:
        ConfigError: `rounds` is less than 1.
    """
    if rounds < 1:
        raise ConfigError(f"rounds must be 1 or more, got {rounds}.")
    order, seconds = list(cases), {case: list[float]() for case in cases}
    with tqdm(total=(rounds + warm_up) * len(order), desc=name, unit="run", leave=False) as bar:
        for number in range(rounds + warm_up):
            turn = number % max(1, len(order))
            for case in order[turn:] + order[:turn]:
                began = time.perf_counter()
                cases[case]()
                if number >= warm_up:
                    seconds[case].append(time.perf_counter() - began)
                bar.update()
    return seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of one case's seconds over another's of the same round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began

"""Results of benchmarks: interleaved timings, limits on measured values, and one CSV for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lfi_kernels.bench.compare import COLUMNS, environment, start_csv
from lfi_kernels.bench.compare import append_csv as append_record
from lfi_pipeline.core.errors import BenchmarkError, ConfigError, LFIError
from lfi_pipeline.core.runtime import progress_bar

__all__ = ["COLUMNS", "Environment", "append_csv"]


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
    with progress_bar(total=(rounds + warm_up) * len(order), desc=name, unit="run", leave=False) as bar:
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


def extra_memory(run: Callable[[], object], device: torch.device) -> float | None:
    """MiB that CUDA's allocator held at most during one call, above what it held before; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One number.

    Attributes:
        case: what was measured.
        shape: sizes that the number depends on.
        metric: which property of the case.
        value: the number, in `unit`.
        unit: its unit.
    """

    case: str
    shape: str
    metric: str
    value: float
    unit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A limit, and whether it holds.

    Attributes:
        what: the property that is limited.
        value: as measured.
        least: the value must be this or more; None where there is no lower limit.
        most: the value must be this or less; None where there is no upper limit.
    """

    what: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the value lies within the limits; NaN does not."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def limit(self) -> str:
        """The limits in words."""
        parts = [] if self.least is None else [f">= {self.least:g}"]
        return " and ".join(parts if self.most is None else [*parts, f"<= {self.most:g}"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One run of a benchmark.

    Attributes:
        benchmark: its name.
        checked: what the correctness gate found to hold before anything was timed.
        measurements: in the order in which they are shown.
        asked: limits on some of them.
        notes: what a reader must know to judge the numbers.
        threads: of torch while it measured; None: as they are.
        by_shape: whether a case was measured in several shapes, so that tables have a row for each.
        topics: the title of the table that shows a metric, by metric; none: all are shown in one.
    """

    benchmark: str
    checked: str
    measurements: tuple[Measurement, ...]
    asked: tuple[Asked, ...] = ()
    notes: tuple[str, ...] = ()
    threads: int | None = None
    by_shape: bool = False
    topics: Mapping[str, str] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """The outcome as dicts, lists, strings and numbers."""
        return {
            "benchmark": self.benchmark,
            "checked": self.checked,
            "measurements": [asdict(each) for each in self.measurements],
            "asked": [asdict(each) | {"met": each.met} for each in self.asked],
            "notes": list(self.notes),
        }

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, head and cells of a table for each topic, or of the one table."""
        if not self.topics:
            return [("", *self.table())]
        tables = []
        for topic in dict.fromkeys(self.topics.values()):
            own = tuple(each for each in self.measurements if self.topics[each.metric] == topic)
            if own:
                tables.append((topic, *replace(self, measurements=own).table()))
        return tables

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row a case, or a case and shape, and a column a metric: head and cells, empty where one is lacking."""
        metrics = list(dict.fromkeys((each.metric, each.unit) for each in self.measurements))
        rows: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
        for each in self.measurements:
            key = (each.case, each.shape) if self.by_shape else (each.case,)
            rows.setdefault(key, {})[each.metric, each.unit] = each.value
        head = ["case", *["shape"] * self.by_shape, *(f"{name}, {unit}" if unit else name for name, unit in metrics)]
        cells = ([format_number(each[m]) if m in each else "" for m in metrics] for each in rows.values())
        return head, [[*key, *row] for key, row in zip(rows, cells, strict=True)]


def require(holds: bool, message: str) -> None:
    """Raise unless a check holds, so that nothing wrong is timed.

    Raises:
        BenchmarkError: `holds` is false.
    """
    if not holds:
        raise BenchmarkError(f"{message} Nothing was timed: wrong results have no speed.")


def format_number(value: float) -> str:
    """Four significant digits at most, thousands set apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """The code, device and versions that a measurement was made with.

    Attributes:
        commit: of the checkout that the code lies in; empty where it is installed.
        dirty: whether that checkout has uncommitted changes.
        device: name of the processor or accelerator.
        threads: of torch within one operation.
        torch: version, and triton's where it is installed.
    """

    commit: str
    dirty: bool
    device: str
    threads: int
    torch: str

    @classmethod
    def here(cls, device: str = "cpu", threads: int | None = None) -> Environment:
        """Describe this process on a torch device; `threads` where it measured with another number than it has now."""
        record = environment(device)
        return cls(
            commit=str(record["commit"]),
            dirty=bool(record["dirty"]),
            device=str(record["device"]),
            threads=threads or int(record["threads"]),
            torch=str(record["torch"]),
        )


def append_csv(path: Path, environment: Environment, outcome: Outcome) -> None:
    """Append one row a measurement; the head is written where the file is new.

    Raises:
        ConfigError: the file has another head.
        LFIError: it cannot be written.
    """
    around = asdict(environment) | {"benchmark": outcome.benchmark}
    try:
        start_csv(path)
        append_record(path, [around | asdict(each) for each in outcome.measurements])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise LFIError(f"Cannot write {path}: {error.strerror or error}. Name another file with `csv`.") from error

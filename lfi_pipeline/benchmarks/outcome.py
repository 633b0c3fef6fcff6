"""What a benchmark gives back: measurements, the limits that were asked for, and the check that came first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lfi_pipeline.errors import BenchmarkError


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
        found = []
        for topic in dict.fromkeys(self.topics.values()):
            own = tuple(each for each in self.measurements if self.topics[each.metric] == topic)
            if own:
                found.append((topic, *replace(self, measurements=own).table()))
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row a case, or a case and shape, and a column a metric: head and cells, empty where one is lacking."""
        metrics = list(dict.fromkeys((each.metric, each.unit) for each in self.measurements))
        rows: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
        for each in self.measurements:
            key = (each.case, each.shape) if self.by_shape else (each.case,)
            rows.setdefault(key, {})[each.metric, each.unit] = each.value
        head = [
            "case",
            *["shape"] * self.by_shape,
            *(f"{metric}, {unit}" if unit else metric for metric, unit in metrics),
        ]
        return head, [[*key, *_cells(values, metrics)] for key, values in rows.items()]


def require(holds: bool, message: str) -> None:
    """Refuse to time what is wrong.

    Raises:
        BenchmarkError: `holds` is false.
    """
    if not holds:
        raise BenchmarkError(f"{message} Nothing was timed: wrong results have no speed.")


def _cells(values: dict[tuple[str, str], float], metrics: Sequence[tuple[str, str]]) -> Iterator[str]:
    for metric in metrics:
        yield format_number(values[metric]) if metric in values else ""


def format_number(value: float) -> str:
    """Four significant digits at most, thousands set apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"

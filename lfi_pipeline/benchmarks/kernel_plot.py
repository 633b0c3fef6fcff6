"""A plot of the kernel benchmark from its CSV: time over the floor, and over the fused or folded block, by shape."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from lfi_kernels.bench import Shape
from lfi_pipeline.benchmarks.record import COLUMNS
from lfi_pipeline.errors import ConfigError, OutputWriteError
from lfi_pipeline.report.dot_chart import DotChart, dot_chart, draw_charts

Ratios = dict[str, dict[str, float]]

PASSES = {"both": 1, "forward": 2, "backward": 3}
CASES = {"projected": 1, "compiled-projected": 5, "sdpa": 3, "folded": 2, "compiled-folded": 4}
KEY = ("commit", "dirty", "threads", "torch")


def plot_kernel(source: Path, out: Path) -> Path:
    """Draw the last run of each device into the SVG file `out`; parts of it that were appended one by one are joined.

    Raises:
        ConfigError: `source` is not such a CSV, or it has no ratio in it.
        OutputWriteError: `out` cannot be written.
    """
    charts = [chart for rows in _last_runs(_read(source)) for chart in _charts(rows)]
    if not charts:
        raise ConfigError(
            f"{source} must hold ratios of the kernel benchmark, found none. Write some with lfi bench kernel --csv."
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(draw_charts(charts), encoding="utf-8")
    except OSError as error:
        raise OutputWriteError(f"Cannot write {out}: {error.strerror or error}. Name another file.") from error
    return out


def _read(source: Path) -> list[dict[str, str]]:
    try:
        with source.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{source} must be a CSV that --csv wrote; it cannot be read: {error}.") from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        found = ", ".join(reader.fieldnames or ())
        raise ConfigError(f"{source} must have the columns {', '.join(COLUMNS)}, got {found}.")
    return [row for row in rows if row["benchmark"] == "kernel"]


def _last_runs(rows: Sequence[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """By device the rows that were measured with what its last row was measured with."""
    last = {row["device"]: [row[name] for name in KEY] for row in rows}
    for device, key in last.items():
        yield [row for row in rows if row["device"] == device and [row[name] for name in KEY] == key]


def _charts(rows: Sequence[dict[str, str]]) -> Iterator[DotChart]:
    first = rows[0]
    commit = first["commit"][:10] + " with changes" * (first["dirty"] == "true")
    source = f"{first['device']}, torch {first['torch']}" + f", commit {commit}" * bool(commit)
    over_floor: Ratios = {}
    over_best: dict[str, Ratios] = {"fused": {}, "folded": {}}
    for row in rows:
        part, _, below = row["metric"].partition(" over ")
        if below == "floor" and part in PASSES:
            over_floor.setdefault(_name(row, query_dim=False), {})[part] = _number(row)
        elif below in over_best and part == "both" and row["case"] in CASES:
            over_best[below].setdefault(_name(row), {})[row["case"]] = _number(row)
    if over_floor:
        title = "The fused op: time over the least it could take"
        yield dot_chart(
            over_floor, title=title, source=source, about="dashed: the floor, and twice it", slots=PASSES, levels=(1, 2)
        )
    for best, ratios in over_best.items():
        if ratios:
            title, about = f"Time over {best}, forward and backward", f"right of 1x: slower than {best}"
            yield dot_chart(ratios, title=title, source=source, about=about, slots=CASES, levels=(1,))


def _name(row: dict[str, str], *, query_dim: bool = True) -> str:
    """The shape in short; the op alone has no Dq."""
    try:
        shape = Shape.parse(row["shape"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    name = f"{shape.model} N{shape.patches} M{shape.words}"
    return f"{name} Dq{shape.query_dim}" if query_dim else name


def _number(row: dict[str, str]) -> float:
    try:
        value = float(row["value"])
    except (TypeError, ValueError):
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"A ratio must be a number above 0, got {row['value']!r} for {row['case']}, {row['shape']}.")
    return value

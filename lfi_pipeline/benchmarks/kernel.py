"""A plot of the kernel benchmark from its CSV: time over the floor, and over the fused or folded block, by shape."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lfi_kernels import bench
from lfi_kernels.bench import Shape
from lfi_kernels.interaction_attention.tuning import tiles_file
from lfi_pipeline.benchmarks.outcome import COLUMNS, Asked, Measurement, Outcome
from lfi_pipeline.core.device import resolve_device
from lfi_pipeline.core.errors import BenchmarkError, ConfigError, OutputWriteError, UnknownNameError
from lfi_pipeline.core.progress import progress_bar
from lfi_pipeline.report.charts import DotChart, dot_chart, draw_charts

Limits = tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelConfig:
    """What to compare, where and how often. Every combination of the sizes; empty: what the device is asked by default.

    Attributes:
        models: names in `lfi_kernels.bench.WIDTHS`.
        patches: numbers of patches.
        words: numbers of words.
        query_dims: channels of a query, or D: as many as a patch has.
        cases: see `lfi_kernels.bench`.
        device: `cpu`, `cuda` or `auto`.
        rounds: in which the cases take turns; the median counts.
        tune: first measure which tiles the fused kernels should run with, and keep the fastest for later processes.
        quick: tiny sizes, which show that it runs and measure nothing.
    """

    models: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    query_dims: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    device: str = "auto"
    rounds: int = 20
    tune: bool = False
    quick: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds must be 1 or more, got {self.rounds}.")
        for name in self.models:
            if name not in bench.WIDTHS:
                raise UnknownNameError("model", name, bench.WIDTHS)
        for name in self.cases:
            if name not in bench.ON_GPU:
                raise UnknownNameError("case", name, bench.ON_GPU)
        try:
            self.sizes()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def sizes(self) -> bench.Sizes:
        """The sizes as `lfi_kernels.bench` takes them."""
        return bench.Sizes(models=self.models, patches=self.patches, words=self.words, query_dims=self.query_dims)


def bench_kernel(config: KernelConfig) -> Outcome:
    """Compare the cases of `lfi_kernels.bench` on every shape.

    Raises:
        ConfigError: a case that the device does not have.
        BenchmarkError: a case computes something else than the reference.
    """
    device = str(resolve_device(config.device))
    is_cuda = device.startswith("cuda")
    try:
        cases = bench.case_names(device, config.cases)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.tune and not is_cuda:
        raise ConfigError(f"tune needs a GPU, got device {device}.")
    with bench.settled(device):
        ceilings = bench.measure_ceilings(device) if is_cuda else None
    shapes = bench.shapes(device, config.sizes(), quick=config.quick)
    rows = bench.ceiling_rows(ceilings) if ceilings else []
    for shape in progress_bar(shapes, desc="kernel", unit="shape", leave=False):
        try:
            rounds = 1 if config.quick else config.rounds
            rows += bench.compare(shape, device, rounds, cases, ceilings, tune=config.tune)
        except ValueError as error:
            raise BenchmarkError(f"{shape}: {error}") from error
    return Outcome(
        benchmark="kernel",
        checked="outputs and every gradient against the folded reference in float64",
        measurements=tuple(Measurement(**asdict(row)) for row in rows),
        asked=() if config.quick else tuple(_asked(rows, is_cuda=is_cuda)),
        notes=tuple(_notes(is_cuda=is_cuda, tune=config.tune)),
        threads=None if is_cuda else 1,
        by_shape=True,
        topics=_topics(rows),
    )


def _topics(rows: Sequence[bench.Row]) -> dict[str, str]:
    """Which table shows a metric; what is time comes last, near the limits."""
    words = {"rate": "ceilings", "error": "error against float64", "kept": "memory", "peak": "memory", "": "time"}
    metrics = {row.metric for row in rows}
    topics = {metric: next(words[word] for word in words if word in metric) for metric in metrics}
    return {metric: topic for word in words.values() for metric, topic in topics.items() if topic == word}


def _asked(rows: Sequence[bench.Row], *, is_cuda: bool) -> Iterator[Asked]:
    """The limits: on a GPU of the fused kernels, on the CPU of folding."""
    for row in rows:
        if row.case.startswith("ceiling"):
            continue
        least, most = (_gpu_limits if is_cuda else _cpu_limits)(row, bench.Shape.parse(row.shape))
        if least is not None or most is not None:
            yield Asked(what=f"{row.case}, {row.shape}: {row.metric}", value=row.value, least=least, most=most)


def _gpu_limits(row: bench.Row, shape: bench.Shape) -> Limits:
    """Least and most that is asked of a row of a GPU."""
    if row.metric == "both over fused" and row.case.startswith("compiled-"):
        return (3.0 if shape.words == 16 else 1.0), None
    if row.metric == "both over fused" and row.case == "projected" and shape.words == 16:
        return 6.0, None
    if row.metric == "both over floor" and shape.words == 16 and shape.model in ("ViT-S/16", "ViT-B/16"):
        return None, 2.0
    return None, None


def _cpu_limits(row: bench.Row, shape: bench.Shape) -> Limits:
    """Least and most that is asked of a row of the CPU."""
    is_plain = shape.words == 16 and shape.query_dim == shape.dim and shape.model in ("ViT-T/16", "ViT-S/16")
    if row.metric == "both over folded" and row.case == "projected" and is_plain:
        return 2.5, None
    return None, None


def _notes(*, is_cuda: bool, tune: bool) -> Iterator[str]:
    yield "Gradients go to every parameter and to both inputs. Dq: channels of a query, which its heads share."
    if tune:
        yield f"Tiles of the fused kernels were measured, and serve later processes from {tiles_file()}."
    if is_cuda:
        yield (
            "Time: replays of CUDA graphs (CUDA graph 1), or calls where none could be captured (0). Floor and fused-op"
            " are the op without its projections. One map in fp32: what a tensor [B, H, M, N] would take. Errors are of"
            " 8 samples, out of the whole batch in the dtype that is timed; compiled cases are checked in no other."
        )
        return
    yield (
        "One thread. Operations over folded: those of the matrix products, about what folding can gain. 2.5x is asked"
        " where Dq = D, as an attention layer has it; a query with fewer channels leaves less to fold."
    )


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

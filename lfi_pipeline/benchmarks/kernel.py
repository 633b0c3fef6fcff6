"""The kernel benchmark, a short benchmark of everything that runs on a GPU, and plots of the rows they write."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from lfi_kernels import bench
from lfi_kernels.bench import Shape
from lfi_kernels.bench.cases import OURS
from lfi_kernels.bench.compare import start_csv
from lfi_kernels.bench.gpu import Session, reason
from lfi_kernels.interaction_attention.tiles import has_triton, tiles_file, triton_version
from lfi_pipeline.benchmarks.config import ExtractionConfig, GpuConfig, KernelConfig, TrainBenchConfig
from lfi_pipeline.benchmarks.extraction import bench_extraction
from lfi_pipeline.benchmarks.outcome import COLUMNS, Asked, Environment, Measurement, Outcome, append_csv
from lfi_pipeline.benchmarks.train import bench_train
from lfi_pipeline.core.errors import BenchmarkError, ConfigError, LFIError, OutputWriteError, UnknownNameError
from lfi_pipeline.core.runtime import progress_bar, resolve_device
from lfi_pipeline.report.charts import DotChart, dot_chart, draw_charts
from lfi_pipeline.teachers.catalog import describe

Limits = tuple[float | None, float | None]


def _sizes(config: KernelConfig) -> bench.Sizes:
    """The sizes as `lfi_kernels.bench` takes them; raises UnknownNameError and ConfigError for others."""
    for name in config.models:
        if name not in bench.WIDTHS:
            raise UnknownNameError("model", name, bench.WIDTHS, argument="models")
    for name in config.cases:
        if name not in bench.ON_GPU:
            raise UnknownNameError("case", name, bench.ON_GPU, argument="cases")
    try:
        return bench.Sizes(
            models=config.models, patches=config.patches, words=config.words, query_dims=config.query_dims
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def bench_kernel(config: KernelConfig) -> Outcome:
    """Compare the cases of `lfi_kernels.bench` on every shape.

    Raises:
        ConfigError: a case that the device does not have.
        BenchmarkError: a case computes something else than the reference.
    """
    sizes = _sizes(config)
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
    shapes = bench.shapes(device, sizes, quick=config.quick)
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
    """Return metric -> title of its table; the table of times comes last, next to the limits."""
    words = {"rate": "ceilings", "error": "error against float64", "kept": "memory", "peak": "memory", "": "time"}
    metrics = {row.metric for row in rows}
    topics = {metric: next(words[word] for word in words if word in metric) for metric in metrics}
    return {metric: topic for word in words.values() for metric, topic in topics.items() if topic == word}


def _asked(rows: Sequence[bench.Row], *, is_cuda: bool) -> Iterator[Asked]:
    """Yield the limits: of the fused kernels on a GPU, of folding on the CPU."""
    for row in rows:
        if row.case.startswith("ceiling"):
            continue
        least, most = (_gpu_limits if is_cuda else _cpu_limits)(row, bench.Shape.parse(row.shape))
        if least is not None or most is not None:
            yield Asked(what=f"{row.case}, {row.shape}: {row.metric}", value=row.value, least=least, most=most)


def _gpu_limits(row: bench.Row, shape: bench.Shape) -> Limits:
    """Return the lower and the upper limit for a row measured on a GPU."""
    has_all_maps = shape.maps is None and shape.words <= 32
    if row.metric == "both over fused" and row.case == "compiled-projected" and has_all_maps:
        return (3.0 if shape.model == "ViT-S/16" else 2.5), None
    if row.metric == "both over fused" and row.case == "compiled-projected":
        return 2.0, None
    if row.metric == "both over fused" and row.case == "projected":
        return (3.5 if has_all_maps else 1.0), None
    if row.metric in ("both over fused", "forward over fused") and row.case not in OURS:
        return 1.0, None
    if row.metric == "both over floor" and has_all_maps:
        return None, 4.0
    return None, None


def _cpu_limits(row: bench.Row, shape: bench.Shape) -> Limits:
    """Return the lower and the upper limit for a row measured on the CPU."""
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
            "Time: replays of CUDA graphs (CUDA graph 1), or calls where none could be captured (0). Floor: the least"
            " time that the block could take by its bytes and products. Errors are of 8 samples, out of the whole batch"
            " in the dtype that is timed; compiled cases are checked in no other."
        )
        return
    yield (
        "One thread. Operations over folded: those of the matrix products, about what folding can gain. 2.5x is asked"
        " where Dq = D, as an attention layer has it; a query with fewer channels leaves less to fold."
    )


def _step_on_a_gpu(*, compiled: bool) -> Outcome:
    student = "vit_small_patch16_224"
    return bench_train(
        TrainBenchConfig(what=("step",), students=(student,), batch_size=256, precision="bf16", compile=compiled)
    )


def _extraction_on_a_gpu(teacher: str, *, compiled: bool) -> Outcome:
    """Extraction of a teacher's default kind; its weights are random, which costs the same."""
    kind = describe(teacher).kinds[0]
    return bench_extraction(
        ExtractionConfig(teacher=f"{teacher}:random", kind=kind, images=512, batch_size=64, compile=compiled)
    )


ON_A_GPU: tuple[tuple[str, float, Callable[[], Outcome]], ...] = (
    ("a compiled step of lfi over none and over a bare timm loop", 120.0, partial(_step_on_a_gpu, compiled=True)),
    *(
        (
            f"extraction over the bare {teacher}{', compiled' * compiled}",
            seconds,
            partial(_extraction_on_a_gpu, teacher, compiled=compiled),
        )
        for teacher, compiled, seconds in (
            ("coca_ViT-L-14", False, 45.0),
            ("coca_ViT-L-14", True, 90.0),
            ("ViT-B-32", False, 30.0),
            ("ViT-B-32", True, 60.0),
        )
    ),
    ("a step of lfi over none and over a bare timm loop", 45.0, partial(_step_on_a_gpu, compiled=False)),
)
"""What is measured beside the kernels: what it is, the seconds it is thought to take (nobody timed it), and how."""


def bench_gpu(config: GpuConfig, say: Callable[[str], object]) -> tuple[bool, list[Outcome]]:
    """Check and time kernels, training and extraction on a GPU, the most important first, a line each as it is known.

    A part that fails is a line and a row, and the others still run; one that would not end in time is not begun.

    Args:
        config: how long, and where rows go.
        say: called with each line.

    Returns:
        Whether every kernel was right, and what was measured beside them.

    Raises:
        ConfigError: there is no GPU that torch can use, or the CSV file is another's.
        LFIError: the CSV file cannot be written.
    """
    if not torch.cuda.is_available():
        raise ConfigError("lfi bench gpu needs a GPU that torch can use, found none. On the CPU: lfi bench kernel.")
    began, seconds = time.monotonic(), 60 * config.minutes
    try:
        start_csv(config.csv)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise LFIError(
            f"Cannot write {config.csv}: {error.strerror or error}. Name another file with `csv`."
        ) from error
    right, outcomes = True, []
    if has_triton():
        try:
            right = not Session("cuda", config.minutes * 2 / 3, config.csv, config.commit, say).run()
        except Exception as error:  # whatever the driver says
            right = False
            _failed("kernels", error, config, say)
    else:
        say(f"kernels: left out, they need triton 3.5 or newer, found {triton_version() or 'none'}")
    slower = 1.0  # of this machine, than what is thought
    for what, expected, measure in ON_A_GPU:
        before = time.monotonic()
        left = seconds - (before - began)
        if left < slower * expected:
            say(f"{what}: no time, it may take {slower * expected:.0f} s and {max(0.0, left):.0f} s are left")
            continue
        try:
            outcome = measure()
            _append(config, outcome)
        except Exception as error:  # whatever the driver or a missing extra says
            _failed(what, error, config, say)
            continue
        slower = max(slower, (time.monotonic() - before) / expected)
        outcomes.append(outcome)
        for row in outcome.measurements:
            say(f"{what}: {row.case}, {row.metric} {row.value:.4g} {row.unit}")
    return right, outcomes


def _append(config: GpuConfig, outcome: Outcome) -> None:
    environment = Environment.here("cuda", outcome.threads)
    append_csv(config.csv, replace(environment, commit=environment.commit or config.commit), outcome)


def _failed(what: str, error: Exception, config: GpuConfig, say: Callable[[str], object]) -> None:
    """Say and keep that a part failed, and how."""
    say(f"{what}: {reason(error)}")
    row = Measurement(case=what, shape="", metric="failed", value=1.0, unit="")
    with suppress(Exception):  # a file that cannot be written, or a GPU that is lost, is what was just said
        _append(config, Outcome(benchmark="gpu", checked="nothing", measurements=(row,)))


Ratios = dict[str, dict[str, float]]

PASSES = {"both": 1, "forward": 2, "backward": 3}
CASES = {"projected": 1, "compiled-projected": 5, "sdpa": 3, "folded": 2, "compiled-folded": 4, "compiled-flex": 6}
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
            f"{source} must hold ratios of the kernel benchmark, found none. Write some with lfi bench kernel."
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
        raise ConfigError(f"{source} must be a CSV of the kernel benchmark; it cannot be read: {error}.") from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        columns = ", ".join(reader.fieldnames or ())
        raise ConfigError(f"{source} must have the columns {', '.join(COLUMNS)}, got {columns}.")
    return [row for row in rows if row["benchmark"] == "kernel"]


def _last_runs(rows: Sequence[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Yield for each device the rows that agree with its last row in `KEY` (code, threads, torch)."""
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
            over_floor.setdefault(_name(row), {})[part] = _number(row)
        elif below in over_best and part == "both" and row["case"] in CASES:
            over_best[below].setdefault(_name(row), {})[row["case"]] = _number(row)
    if over_floor:
        title = "The fused block: time over the least it could take"
        yield dot_chart(
            over_floor, title=title, source=source, about="dashed: the floor, and twice it", slots=PASSES, levels=(1, 2)
        )
    for best, ratios in over_best.items():
        if ratios:
            title, about = f"Time over {best}, forward and backward", f"right of 1x: slower than {best}"
            yield dot_chart(ratios, title=title, source=source, about=about, slots=CASES, levels=(1,))


def _name(row: dict[str, str]) -> str:
    """The shape in short."""
    try:
        shape = Shape.parse(row["shape"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    maps = "" if shape.maps is None else f" R{shape.maps}"
    return f"{shape.model} N{shape.patches} M{shape.words}{maps} Dq{shape.query_dim}"


def _number(row: dict[str, str]) -> float:
    try:
        value = float(row["value"])
    except (TypeError, ValueError):
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"A ratio must be a number above 0, got {row['value']!r} for {row['case']}, {row['shape']}.")
    return value

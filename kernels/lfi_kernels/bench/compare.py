"""Rows with what they were measured with, as JSON lines and in a CSV.

`lfi bench NAME --csv` writes its rows with this as well, so that one file can hold them all.
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lfi_kernels.bench.cases import Case, make_cases
from lfi_kernels.bench.shapes import DTYPES, Ceilings, Shape
from lfi_kernels.bench.timing import (
    COPY_BYTES,
    PASSES,
    PRODUCT_SIZE,
    Passes,
    Replayed,
    Seconds,
    Work,
    passes_of,
    take_turns,
    upstream_of,
    variable,
)
from lfi_kernels.interaction_attention.tiles import TUNE_VARIABLE, triton_version

GATE = {"fp32": 2e-5, "fp16": 1e-2, "bf16": 3e-2}
"""Largest RMS error that is still timed."""

SAMPLES = 8


class WrongResultError(ValueError):
    """A case computes something else than the reference."""


LeftOut = Callable[[str, Exception], object]
"""Is called with the name of a case that failed, and how."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measured number of a case on a shape."""

    case: str
    shape: str
    metric: str
    value: float
    unit: str


def compare(
    shape: Shape,
    device: str,
    rounds: int,
    names: Sequence[str],
    ceilings: Ceilings | None = None,
    *,
    tune: bool = False,
    only_its_dtype: bool = False,
    left_out: LeftOut | None = None,
) -> list[Row]:
    """Check and time cases on one shape.

    Args:
        shape: its dtype is the one that is timed; on a GPU fp32 and fp16 are checked as well, on at most 8 samples.
        device: of torch.
        rounds: in which the cases take turns; the median counts.
        names: which cases, as `case_names` gives them.
        ceilings: of the GPU; with them the fused block is set beside the least time it could take.
        tune: first measure which tiles the fused kernels should run with, where that was not done before.
        only_its_dtype: check no other dtypes on a GPU: compiling for them takes its time.
        left_out: with it, a case that is wrong or cannot run costs no other; without it, it ends the comparison.

    Raises:
        WrongResultError: a case computes something else, without `left_out`. Nothing of the shape is timed then.
    """
    rows = Rows(str(shape))
    with settled(device, tune):
        _compare(rows, shape, device, rounds, names, ceilings, only_its_dtype, left_out)
    return rows.found


def _compare(
    rows: Rows,
    shape: Shape,
    device: str,
    rounds: int,
    names: Sequence[str],
    ceilings: Ceilings | None,
    only_its_dtype: bool,
    left_out: LeftOut | None,
) -> None:
    is_cuda = device.startswith("cuda")
    torch.compiler.reset()  # what was compiled for another shape does not serve this one
    if is_cuda and not only_its_dtype:
        for dtype in [each for each in DTYPES if each != shape.dtype]:
            small = replace(shape, batch=min(shape.batch, SAMPLES), dtype=dtype)
            # A compiled case would be compiled anew for each of these.
            plain = [name for name in names if not name.startswith("compiled-")]
            cases = make_cases(small, device, plain)
            _each(cases, left_out, partial(_check, rows, dtype))
            names = [name for name in names if name in cases or name not in plain]
    passes: dict[str, Passes] = {}
    cases = make_cases(shape, device, names)
    _each(cases, left_out, partial(_check, rows, shape.dtype))
    _each(cases, left_out, partial(_weigh, rows, is_cuda))
    _each(cases, left_out, lambda name, case: passes.update({name: passes_of(name, case.work, is_cuda)}))
    seconds = take_turns(passes, rounds, is_cuda)
    parts = PASSES if shape.maps != 0 else ("forward",)
    for name in cases:
        for part in parts:
            rows.add(name, part, 1e3 * seconds[name].medians()[part], "ms")
    _relate(rows, seconds, "fused" if is_cuda else "folded", parts[-1])
    if is_cuda:
        for name in cases:
            rows.add(name, "CUDA graph", isinstance(passes[name], Replayed))
    elif "projected" in cases:
        rows.add("projected", "operations over folded", gain_bound(shape), "x")
    if ceilings is not None:
        for part, least in ceilings.least_seconds(shape).items():
            rows.add("floor", part, 1e3 * least, "ms")
            if "fused" in seconds:
                rows.add("fused", f"{part} over floor", seconds["fused"].medians()[part] / least, "x")


def in_short(rows: Sequence[Row]) -> str:
    """Return a line about a shape: time of both passes (for inference, of forward) by case, and ratios to the floor."""
    part = "both" if any(row.metric == "both" for row in rows) else "forward"
    figures = [f"{row.case} {row.value:.3g} {row.unit}" for row in rows if row.metric == part]
    figures += [f"{row.metric} {row.value:.3g}{row.unit}" for row in rows if row.metric.endswith(" over floor")]
    return f"{rows[0].shape}: {', '.join(figures)}"


def ceiling_rows(ceilings: Ceilings) -> list[Row]:
    """The ceilings as rows of their own."""
    size = f"{PRODUCT_SIZE} x {PRODUCT_SIZE} x {PRODUCT_SIZE} bf16"
    copied, products = ceilings.copied / 1e9, ceilings.products / 1e12
    return [
        Row(case="ceiling: copy", shape=f"{COPY_BYTES // 2**20} MiB", metric="rate", value=copied, unit="GB/s"),
        Row(case="ceiling: product", shape=size, metric="rate", value=products, unit="TFLOP/s"),
    ]


def gain_bound(shape: Shape) -> float:
    """Operations of `projected` over those of `folded`, in matrix products alone: what folding can gain by them.

    Forward; backward has twice as many of each. Both have W_q and W_o, [M, Dq] @ [Dq, Dq].
    """
    rows, n, d, q = shape.words, shape.patches, shape.dim, shape.query_dim
    shared = 2 * rows * q * q
    keys_and_values, scores = 2 * n * d * q, 2 * rows * n * q
    folds, folded_scores = 2 * rows * d * q, 2 * shape.heads * rows * n * d
    return (keys_and_values + scores + shared) / (folds + folded_scores + shared)


@contextmanager
def settled(device: str, tune: bool = False) -> Iterator[None]:
    """Let torch use one thread on the CPU, or make a GPU the current one; afterwards all is as it was."""
    if device.startswith("cuda"):
        with torch.cuda.device(device), variable(TUNE_VARIABLE, "1" if tune else "0"):
            yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Rows:
    """Collects rows of one shape."""

    def __init__(self, shape: str) -> None:
        self._shape = shape
        self.found: list[Row] = []

    def add(self, case: str, metric: str, value: float, unit: str = "") -> None:
        self.found.append(Row(case=case, shape=self._shape, metric=metric, value=float(value), unit=unit))


def _each(cases: dict[str, Case], left_out: LeftOut | None, do: Callable[[str, Case], None]) -> None:
    """Do something with each case; one that fails is dropped where `left_out` is there to be told."""
    for name in tuple(cases):
        try:
            do(name, cases[name])
        except Exception as error:  # whatever the compiler or the driver says
            if left_out is None:
                raise
            left_out(name, error)
            del cases[name]


def _check(rows: Rows, dtype: str, name: str, case: Case) -> None:
    errors = check(name, case.work, case.exact, dtype)
    rows.add(name, f"RMS error {dtype}", errors.rms)
    rows.add(name, f"max error {dtype}", errors.largest)


def _weigh(rows: Rows, is_cuda: bool, name: str, case: Case) -> None:
    """Add the memory that a case takes."""
    rows.add(name, "kept for the gradient", kept_bytes(case.work) / 2**20, "MiB")
    if is_cuda:
        rows.add(name, "peak extra memory", peak_bytes(case.work) / 2**20, "MiB")


def _relate(rows: Rows, seconds: Mapping[str, Seconds], best: str, part: str) -> None:
    """Add the time that each other case takes for a pass over that of the best case: the median over rounds."""
    for name, taken in seconds.items():
        if best in seconds and name != best:
            pairs = zip(getattr(taken, part), getattr(seconds[best], part), strict=True)
            rows.add(name, f"{part} over {best}", statistics.median(a / b for a, b in pairs), "x")


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """The worst over both outputs and every gradient.

    Attributes:
        rms: ‖result - truth‖ / ‖truth‖.
        largest: largest |result - truth| / largest |truth|.
    """

    rms: float
    largest: float


def check(name: str, work: Work, exact: Callable[[Tensor], Work], dtype: str) -> Errors:
    """Compare a work with the exact one on at most 8 samples, spread from the first to the last of its batch.

    The whole batch runs, as it does when it is timed. Gradients that enter the other samples are zero, so that those
    of the parameters are sums over the compared ones alone.

    Args:
        exact: makes the same work of some samples, by their numbers, in float64.

    Raises:
        WrongResultError: the RMS error is above what is allowed for `dtype`: wrong results have no speed.
    """
    batch = work.leaves[1].shape[0]
    picked = torch.linspace(0, batch - 1, min(batch, SAMPLES)).round().long().to(work.leaves[0].device)
    outputs = work.forward()
    upstream = [_only(each, work.places(result, picked)) for result, each in enumerate(upstream_of(outputs))]
    results = [_picked(each, work.places(result, picked)) for result, each in enumerate(outputs)]
    backward = enumerate(work.backward(outputs, upstream), len(outputs))
    results += [_picked(each, work.places(result, picked)) for result, each in backward]
    twin = exact(picked)
    outputs = twin.forward()
    again = [_picked(each, work.places(result, picked)).double() for result, each in enumerate(upstream)]
    truth = [*outputs, *twin.backward(outputs, again)]
    if not work.is_compared:
        del results[1], truth[1]  # no divergence
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(results, truth, strict=True)]
    rms = [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs]
    largest = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs]
    if not all(each <= GATE[dtype] for each in rms):  # NaN included
        raise WrongResultError(
            f"{name} must be within {GATE[dtype]:g} of the float64 reference in {dtype}, got {max(rms):g}: not timed."
        )
    return Errors(rms=max(rms), largest=max(largest))


def _only(upstream: Tensor, places: Tensor | None) -> Tensor:
    """Return the gradients that enter, with zeros outside the picked samples."""
    kept = torch.zeros_like(upstream)
    kept[places] = upstream[places]
    return kept


def _picked(result: Tensor, places: Tensor | None) -> Tensor:
    return result if places is None else result[places]


def kept_bytes(work: Work) -> int:
    """Bytes that the forward pass keeps for the backward pass, beside inputs and parameters."""
    own = {each.untyped_storage().data_ptr() for each in (*work.leaves, *work.constants)}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Held, so that no address is used twice; detached, for a result that its own graph holds is never freed, and
        # with it the AccumulateGrad nodes of the leaves, whose stream then breaks every later CUDA graph.
        held = tensor.detach()
        kept.setdefault(tensor.untyped_storage().data_ptr(), held)
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = work.forward()
    del outputs
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def peak_bytes(work: Work) -> int:
    """Peak of the CUDA allocator over both passes, above inputs, parameters and the gradients that enter.

    The results count: both outputs, and the gradient of every leaf.
    """
    upstream = upstream_of(work.forward())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = work.forward()
    work.backward(outputs, upstream)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


COLUMNS = (
    *("commit", "dirty", "device", "threads", "torch"),
    *("benchmark", "case", "shape", "metric", "value", "unit"),
)
Record = dict[str, str | bool | int | float]


def environment(device: str, commit: str = "") -> Record:
    """Return what is measured with: the first columns of a row.

    Args:
        device: of torch.
        commit: is recorded where the code does not lie in a checkout of its own.
    """
    revision = _git("rev-parse", "HEAD")
    return {
        "commit": revision or commit,
        "dirty": bool(revision and _git("status", "--porcelain")),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": f"{torch.__version__}, triton {triton}" if (triton := triton_version()) else str(torch.__version__),
    }


def records(around: Record, rows: Sequence[Row]) -> list[Record]:
    """Return one dict a row, whose keys are the columns."""
    return [around | {"benchmark": "kernel"} | asdict(row) for row in rows]


def start_csv(path: Path) -> None:
    """Write the head where the file is new.

    Raises:
        ValueError: the file has another head.
        OSError: it cannot be written.
    """
    if path.exists() and path.stat().st_size:
        with path.open(newline="", encoding="utf-8") as file:
            head = next(csv.reader(file), [])
        if head != list(COLUMNS):
            raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}, got {', '.join(head)}.")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")


def append_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Append rows, whose keys are the columns, to a file that `start_csv` accepted."""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        for each in rows:
            writer.writerow({**each, "dirty": str(each["dirty"]).lower(), "value": f"{each['value']:.6g}"})


def _cpu_name() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text(encoding="utf-8", errors="replace").splitlines())
        name = next((value.strip() for field, _, value in lines if field.strip() == "model name"), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} x{cores}"


def _git(*words: str) -> str:
    """Output of git in this code's own checkout; empty where it does not lie in one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

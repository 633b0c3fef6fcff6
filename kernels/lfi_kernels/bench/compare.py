"""Check every case of one shape against float64, then weigh and time them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from lfi_kernels.bench.cases import Case, make_cases
from lfi_kernels.bench.ceilings import COPY_BYTES, PRODUCT_SIZE, Ceilings
from lfi_kernels.bench.errors import SAMPLES, check
from lfi_kernels.bench.memory import kept_bytes, peak_bytes
from lfi_kernels.bench.shapes import DTYPES, Shape
from lfi_kernels.bench.timing import PASSES, Replayed, Seconds, passes_of, take_turns
from lfi_kernels.bench.work import variable
from lfi_kernels.interaction_attention.tuning import TUNE_VARIABLE


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One number."""

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
) -> list[Row]:
    """Check and time cases on one shape.

    Args:
        shape: its dtype is the one that is timed; on a GPU fp32 and fp16 are checked as well, on at most 8 samples.
        device: of torch.
        rounds: in which the cases take turns; the median counts.
        names: which cases, as `case_names` gives them.
        ceilings: of the GPU; with them the op is set beside the least time it could take.
        tune: first measure which tiles the fused kernels should run with, where that was not done before.

    Raises:
        ValueError: a case computes something else. Nothing of the shape is timed then.
    """
    rows = Rows(str(shape))
    with settled(device, tune):
        _compare(rows, shape, device, rounds, names, ceilings)
    return rows.found


def _compare(
    rows: Rows, shape: Shape, device: str, rounds: int, names: Sequence[str], ceilings: Ceilings | None
) -> None:
    is_cuda = device.startswith("cuda")
    torch.compiler.reset()  # what was compiled for another shape does not serve this one
    if is_cuda:
        for dtype in [each for each in DTYPES if each != shape.dtype]:
            small = replace(shape, batch=min(shape.batch, SAMPLES), dtype=dtype)
            # A compiled case would be compiled anew for each of these.
            plain = [name for name in names if not name.startswith("compiled-")]
            _check(rows, make_cases(small, device, plain), dtype)
    cases = make_cases(shape, device, names)
    _check(rows, cases, shape.dtype)
    _weigh(rows, cases, shape, is_cuda)
    passes = {name: passes_of(name, case.work, is_cuda) for name, case in cases.items()}
    seconds = take_turns(passes, rounds, is_cuda)
    for name in cases:
        for part, median in seconds[name].medians().items():
            rows.add(name, part, 1e3 * median, "ms")
    _relate(rows, seconds, "fused" if is_cuda else "folded")
    if is_cuda:
        for name in cases:
            rows.add(name, "CUDA graph", isinstance(passes[name], Replayed))
    elif "projected" in names:
        rows.add("projected", "operations over folded", gain_bound(shape), "x")
    if ceilings is not None:
        least = ceilings.least_seconds(shape)
        for part in PASSES:
            rows.add("floor", part, 1e3 * least[part], "ms")
            if "fused-op" in seconds:
                rows.add("fused-op", f"{part} over floor", seconds["fused-op"].medians()[part] / least[part], "x")


def in_short(rows: Sequence[Row]) -> str:
    """One line of a shape: time of both passes by case, and of the op over its floor."""
    told = [f"{row.case} {row.value:.3g} {row.unit}" for row in rows if row.metric == "both"]
    told += [f"{row.metric} {row.value:.3g}{row.unit}" for row in rows if row.metric.endswith(" over floor")]
    return f"{rows[0].shape}: {', '.join(told)}"


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


def _check(rows: Rows, cases: Mapping[str, Case], dtype: str) -> None:
    for name, case in cases.items():
        errors = check(name, case.work, case.exact, dtype)
        rows.add(name, f"RMS error {dtype}", errors.rms)
        rows.add(name, f"max error {dtype}", errors.largest)


def _weigh(rows: Rows, cases: Mapping[str, Case], shape: Shape, is_cuda: bool) -> None:
    """Memory by case; for the op also in sizes of u [B, H, M, D], beside one map of fp32 [B, H, M, N]."""
    for name, case in cases.items():
        rows.add(name, "kept for the gradient", kept_bytes(case.work) / 2**20, "MiB")
        if not is_cuda:
            continue
        peak = peak_bytes(case.work)
        rows.add(name, "peak extra memory", peak / 2**20, "MiB")
        if name == "fused-op":
            u, x = (each.untyped_storage().nbytes() for each in case.work.leaves)
            one_map = 4 * shape.batch * shape.heads * shape.words * shape.patches
            rows.add(name, "peak without dX over [B, H, M, D]", (peak - x) / u, "x")
            rows.add("one map in fp32", "peak extra memory", one_map / 2**20, "MiB")
            rows.add("one map in fp32", "peak without dX over [B, H, M, D]", one_map / u, "x")


def _relate(rows: Rows, seconds: Mapping[str, Seconds], best: str) -> None:
    """Time of both passes over that of the best case, by round; the op alone does less and is not compared."""
    for name, taken in seconds.items():
        if best in seconds and name not in (best, "fused-op"):
            ratio = statistics.median(a / b for a, b in zip(taken.both, seconds[best].both, strict=True))
            rows.add(name, f"both over {best}", ratio, "x")

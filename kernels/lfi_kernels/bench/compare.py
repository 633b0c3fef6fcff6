"""Check every case against the reference in float64, then time them in turns."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_kernels.bench.cases import PLAIN, WIDTHS, Case, Inputs, Shape, folded, make, step
from lfi_kernels.interaction_attention import interaction_attention
from lfi_kernels.interaction_query import InteractionQueryBlock

GATE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
"""Largest ‖found - truth‖ / ‖truth‖ of an output or gradient that is still timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One number."""

    case: str
    shape: str
    metric: str
    value: float
    unit: str


@contextmanager
def kernels(choice: str) -> Iterator[None]:
    """Set LFI_KERNELS for a while."""
    before = os.environ.get("LFI_KERNELS")
    os.environ["LFI_KERNELS"] = choice
    try:
        yield
    finally:
        os.environ.pop("LFI_KERNELS")
        if before is not None:
            os.environ["LFI_KERNELS"] = before


def check(name: str, found: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype) -> float:
    """Return the largest relative error.

    Raises:
        ValueError: it is above what is allowed for `dtype`: wrong results have no speed.
    """
    worst = max(float((a.double() - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(found, truth, strict=True))
    if not worst <= GATE[dtype]:
        raise ValueError(f"{name} must be within {GATE[dtype]:g} of the float64 reference, got {worst:g}: not timed.")
    return worst


def compare(shape: Shape, device: str, rounds: int) -> list[Row]:
    """Check and time every case on one shape; the cases take turns, and the median counts.

    Raises:
        ValueError: a case computes something else.
    """
    is_cuda = device.startswith("cuda")
    dtype = torch.bfloat16 if is_cuda else torch.float32
    block, given = make(shape, device, dtype)
    wide = replace(
        given,
        queries=given.queries.detach().double().requires_grad_(),
        features=given.features.detach().double().requires_grad_(),
    )
    with kernels("reference"):
        truth = step(folded, _widened(block), wide)
    cases: dict[str, tuple[Case, str]] = {name: (case, "reference") for name, case in PLAIN.items()}
    if is_cuda:
        cases |= {f"compiled {name}": (torch.compile(PLAIN[name]), "reference") for name in ("folded", "projected")}
        cases["fused"] = (folded, "triton")

    rows = []
    for name, (case, choice) in cases.items():
        with kernels(choice):
            error = check(name, step(case, block, given), truth, dtype)
        rows.append(Row(case=name, shape=str(shape), metric="largest relative error", value=error, unit=""))
        with kernels(choice):
            kept = kept_bytes(case, block, given) / 2**20
        rows.append(Row(case=name, shape=str(shape), metric="kept for the gradient", value=kept, unit="MiB"))
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, (case, choice) in cases.items():
            with kernels(choice):
                taken = _seconds(lambda case=case: step(case, block, given), is_cuda)  # type: ignore[misc]
            if turn:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        rows.append(Row(case=name, shape=str(shape), metric="forward and backward", value=1e3 * median, unit="ms"))
    best = "fused" if is_cuda else "folded"
    for name in medians:
        if name != best:
            share = statistics.median(a / b for a, b in zip(seconds[name], seconds[best], strict=True))
            rows.append(Row(case=name, shape=str(shape), metric=f"time over {best}", value=share, unit="x"))
    if is_cuda:
        rows += [_peak(name, case, choice, shape, block, given) for name, (case, choice) in cases.items()]
        rows += _against_floor(shape, given, rounds)
    return rows


def floor_seconds(shape: Shape) -> float:
    """Least time of the op, forward and backward, in bf16 on this GPU (DESIGN.md, section 6).

    The larger of its bytes over the bandwidth of a large copy, and its operations over the rate of a large matrix
    product, both measured here: X read twice and dX written, u, z, dz, du and the codes read or written once a pass;
    two products forward and five backward.
    """
    dim, rows = WIDTHS[shape.model], shape.heads * shape.words
    moved = shape.batch * (3 * 2 * shape.patches * dim + 6 * 2 * rows * dim + 2 * shape.words * shape.patches)
    operations = shape.batch * 7 * 2 * rows * shape.patches * dim
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        target.copy_(source)
        torch.mm(left, right)
    copy = statistics.median(_seconds(lambda: target.copy_(source), True) for _ in range(10))
    product = statistics.median(_seconds(lambda: torch.mm(left, right), True) for _ in range(10))
    return max(moved * copy / (2 * 4 * 2**28), operations * product / (2 * 8192**3))


def _against_floor(shape: Shape, given: Inputs, rounds: int) -> list[Row]:
    """The fused op alone, without the projections around it, beside the floor."""
    rows, width = shape.heads * shape.words, WIDTHS[shape.model]
    u = torch.randn(shape.batch, rows, width, device="cuda", dtype=torch.bfloat16) / math.sqrt(width)
    u = u.view(shape.batch, shape.heads, shape.words, width).requires_grad_()
    x = F.layer_norm(given.features.detach(), (width,)).requires_grad_()

    def run() -> None:
        z, kl = interaction_attention(u, x, given.target, given.weight, target_scale=given.scale)
        torch.autograd.grad((z, kl), (u, x), (torch.ones_like(z), torch.ones_like(kl)))

    with kernels("triton"):
        taken = statistics.median([_seconds(run, True) for _ in range(rounds + 3)][3:])
    floor = floor_seconds(shape)
    return [
        Row(case="floor", shape=str(shape), metric="forward and backward", value=1e3 * floor, unit="ms"),
        Row(case="fused op", shape=str(shape), metric="forward and backward", value=1e3 * taken, unit="ms"),
        Row(case="fused op", shape=str(shape), metric="time over floor", value=taken / floor, unit="x"),
    ]


def _peak(name: str, case: Case, choice: str, shape: Shape, block: InteractionQueryBlock, given: Inputs) -> Row:
    """Peak of the allocator above what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with kernels(choice):
        step(case, block, given)
    extra = (torch.cuda.max_memory_allocated() - before) / 2**20
    return Row(case=name, shape=str(shape), metric="peak extra memory", value=extra, unit="MiB")


def kept_bytes(case: Case, block: InteractionQueryBlock, given: Inputs) -> int:
    """Bytes that the forward pass keeps for the backward pass, beside inputs and parameters."""
    own = {each.untyped_storage().data_ptr() for each in (*_tensors(given), *block.parameters())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = case(block, given)
    del results
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def _tensors(given: Inputs) -> tuple[Tensor, ...]:
    return given.queries, given.features, given.target, given.scale, given.weight


def _seconds(run: Callable[[], object], is_cuda: bool) -> float:
    if is_cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _widened(block: InteractionQueryBlock) -> InteractionQueryBlock:
    wide = InteractionQueryBlock(block.query_dim, block.feature_dim, block.heads)
    wide.load_state_dict(block.state_dict())
    return wide.to(block.w_q.device, torch.float64)

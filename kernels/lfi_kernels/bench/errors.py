"""How far a computation is from float64. What is too far is refused, and never timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lfi_kernels.bench.work import PER_SAMPLE, Work, upstream_of

GATE = {"fp32": 2e-5, "fp16": 1e-2, "bf16": 3e-2}
"""Largest RMS error that is still timed."""

SAMPLES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """The worst over both outputs and every gradient.

    Attributes:
        rms: ‖found - truth‖ / ‖truth‖.
        largest: largest |found - truth| / largest |truth|.
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
        ValueError: the RMS error is above what is allowed for `dtype`: wrong results have no speed.
    """
    batch = work.leaves[0].shape[0]
    picked = torch.linspace(0, batch - 1, min(batch, SAMPLES)).round().long().to(work.leaves[0].device)
    outputs = work.forward()
    upstream = [_only(each, picked) for each in upstream_of(outputs)]
    found = [*outputs, *work.backward(outputs, upstream)]
    found[:PER_SAMPLE] = [each[picked] for each in found[:PER_SAMPLE]]
    twin = exact(picked)
    outputs = twin.forward()
    truth = [*outputs, *twin.backward(outputs, [each[picked].double() for each in upstream])]
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(found, truth, strict=True)]
    rms = [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs]
    largest = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs]
    if not all(each <= GATE[dtype] for each in rms):  # NaN included
        raise ValueError(
            f"{name} must be within {GATE[dtype]:g} of the float64 reference in {dtype}, got {max(rms):g}: not timed."
        )
    return Errors(rms=max(rms), largest=max(largest))


def _only(upstream: Tensor, picked: Tensor) -> Tensor:
    """Zeros outside the picked samples."""
    kept = torch.zeros_like(upstream)
    kept[picked] = upstream[picked]
    return kept

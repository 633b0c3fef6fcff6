"""One computation as it is checked and timed: what runs forward, and what it is differentiated by."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lfi_kernels.interaction_attention.dispatch import ENVIRONMENT_VARIABLE

PER_SAMPLE = 4
"""Results that have the batch first: both outputs, and the gradients of the first two leaves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Two outputs [B, ...] of some leaves.

    Attributes:
        run: computes the outputs.
        leaves: what gradients are taken of; the first two are [B, ...], the others are shared by the samples.
        constants: further tensors that it reads.
        choice: the value of LFI_KERNELS under which it runs.
    """

    run: Callable[[], tuple[Tensor, Tensor]]
    leaves: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    choice: str

    def forward(self) -> tuple[Tensor, Tensor]:
        with variable(ENVIRONMENT_VARIABLE, self.choice):
            return self.run()

    def backward(self, outputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Gradients of the leaves; what the outputs kept for them is gone afterwards."""
        with variable(ENVIRONMENT_VARIABLE, self.choice):
            return torch.autograd.grad(outputs, self.leaves, upstream)


def upstream_of(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Random gradients of the outputs, the same at every call: numbers that are all 1 or 0 can run faster."""
    g = torch.Generator(outputs[0].device).manual_seed(1)
    return tuple(torch.randn(each.shape, generator=g, device=each.device, dtype=each.dtype) for each in outputs)


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before

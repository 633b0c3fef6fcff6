"""Counting operations."""

from __future__ import annotations

import torch
from torch import nn

from lfi_pipeline.core.runtime import OperationCounter


def counted(layer: nn.Module, inputs: torch.Tensor, *, backward: bool) -> int:
    with OperationCounter() as counter:
        out = layer(inputs)
        if backward:
            out.sum().backward()
    return counter.total


def test_a_multiplication_and_an_addition_are_two() -> None:
    linear, inputs = nn.Linear(3, 5), torch.randn(7, 3, requires_grad=True)
    assert counted(linear, inputs, backward=False) == 2 * 7 * 3 * 5
    assert counted(linear, inputs, backward=True) == 3 * 2 * 7 * 3 * 5  # of inputs and of weights as well


def test_convolutions_count() -> None:
    conv, inputs = nn.Conv2d(2, 4, 3, padding=1, bias=False), torch.randn(1, 2, 6, 5)
    assert counted(conv, inputs, backward=False) == 2 * 4 * 2 * 9 * 30


def test_gradients_inside_of_vmap_count() -> None:
    weight, inputs = torch.randn(5, 3), torch.randn(7, 3, requires_grad=True)
    out = inputs @ weight.T
    cotangents = torch.randn(4, 7, 5)
    with OperationCounter() as counter:
        torch.vmap(lambda each: torch.autograd.grad(out, inputs, each, retain_graph=True))(cotangents)
    assert counter.total == 4 * 2 * 7 * 5 * 3


def test_nothing_counts_outside() -> None:
    with OperationCounter() as counter:
        pass
    torch.randn(3, 3) @ torch.randn(3, 3)
    assert counter.total == 0

"""The three products over the patches, each alone, against PyTorch's layer norm in float64 and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_kernels.interaction_attention import triton_project
from lfi_kernels.interaction_attention.tiles import Problem, Tile
from lfi_kernels.interaction_attention.triton_project import (
    features_gradient,
    precision,
    processors,
    project,
    weights_gradient,
)
from tests.lfi_kernels.interaction_attention.interpreted.test_triton_fused import DEVICE

EPS = 1e-5
SMALL = Tile(rows=16, columns=16, depth=16, warps=4, stages=1)
UNEVEN = Tile(rows=32, columns=16, depth=32, warps=4, stages=1)


def drawn(batch: int = 2, patches: int = 19, dim: int = 24, columns: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B, N, D] of different size and mean, weights [D, C] without column means, a gradient [B, N, C]."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, patches, dim, generator=g) * (0.5 + torch.rand(batch, patches, 1, generator=g)) + 0.7
    w = torch.randn(dim, columns, generator=g) / dim**0.5
    given = x, w - w.mean(0), torch.randn(batch, patches, columns, generator=g)
    return tuple(each.to(DEVICE) for each in given)  # type: ignore[return-value]


def use(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(_problem: Problem, _device: torch.device, run: Callable[[Tile], Any]) -> Any:
        return run(tile)

    monkeypatch.setattr(triton_project, "launch", launch)


def assert_near(found: Tensor, truth: Tensor) -> None:
    assert found.shape == truth.shape
    assert float((found.double() - truth).norm()) <= 2e-6 * float(truth.norm())


@pytest.mark.parametrize("tile", [SMALL, UNEVEN])
@pytest.mark.parametrize(("dim", "columns"), [(24, 40), (32, 48)])
def test_keys_and_values_are_those_of_layer_norm(
    tile: Tile, dim: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tile, monkeypatch)
    x, w, _ = drawn(dim=dim, columns=columns)
    kv, mean, rstd = project(x, w, EPS)
    wide = x.double()
    assert_near(kv, F.layer_norm(wide, (dim,), eps=EPS) @ w.double())
    assert_near(mean, wide.mean(-1))
    assert_near(rstd, (wide.var(-1, unbiased=False) + EPS).rsqrt())


def test_without_layer_norm_it_is_the_product() -> None:
    x, w, _ = drawn()
    kv, mean, rstd = project(x, w, None)
    assert_near(kv, x.double() @ w.double())
    assert mean.numel() == rstd.numel() == 0


def test_a_constant_patch_gives_zeros_and_a_deviation_of_eps() -> None:
    x, w, _ = drawn()
    x[1, 3] = 5.0
    kv, mean, rstd = project(x, w, EPS)
    assert kv[1, 3].abs().max() < 1e-2  # what rounding leaves of 0, times 1 / sqrt(eps)
    assert float(mean[1, 3]) == 5.0
    assert float(rstd[1, 3]) == pytest.approx(EPS**-0.5)


@pytest.mark.parametrize("tile", [SMALL, UNEVEN])
def test_both_gradients_are_those_of_autograd(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tile, monkeypatch)
    x, w, d_kv = drawn()
    _, mean, rstd = project(x, w, EPS)
    wide_x, wide_w = x.double().requires_grad_(), w.double().requires_grad_()
    normed = F.layer_norm(wide_x, (24,), eps=EPS)
    dx, dw = torch.autograd.grad(normed @ wide_w, [wide_x, wide_w], d_kv.double())
    along = ((d_kv.double() @ w.double().T) * normed.detach()).mean(-1)
    g, coef = d_kv * rstd[..., None], (along * rstd.double() ** 2).float()
    assert_near(features_gradient(g, w, x, mean, coef), dx)
    found = weights_gradient(x, g)
    assert_near(found - found.mean(0), dw)  # the means of the columns are not a parameter


def test_gradients_without_layer_norm_are_two_products() -> None:
    x, w, g = drawn()
    none = x.new_empty(0)
    assert_near(features_gradient(g, w, x, none, none), g.double() @ w.double().T)
    assert_near(weights_gradient(x, g), x.double().flatten(0, 1).T @ g.double().flatten(0, 1))


def test_parts_of_the_patches_give_the_same_bits_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """57 patches in steps of 16: four parts where there are processors for them, one where there are none."""
    use(SMALL, monkeypatch)
    x, _, g = drawn(batch=3)
    truth = x.double().flatten(0, 1).T @ g.double().flatten(0, 1)
    splits: list[int] = []
    empty = torch.Tensor.new_empty

    def seen(like: Tensor, *size: Any, **named: Any) -> Tensor:
        if size[1:] == (24, 40):  # the interpreter allocates as well
            splits.append(size[0])
        return empty(like, *size, **named)

    monkeypatch.setattr(torch.Tensor, "new_empty", seen)
    for count in (1, 1000):
        monkeypatch.setattr(triton_project, "processors", lambda _, count=count: count)
        first, second = weights_gradient(x, g), weights_gradient(x, g)
        assert torch.equal(first, second)
        assert_near(first, truth)
    assert splits == [1, 1, 4, 4]


def test_fp32_keeps_its_digits_and_a_cpu_counts_as_two_processors() -> None:
    assert precision(torch.zeros(1)) == "tf32x3"
    assert precision(torch.zeros(1, dtype=torch.float16)) == precision(torch.zeros(1, dtype=torch.bfloat16)) == "ieee"
    assert processors(torch.zeros(1)) == 2

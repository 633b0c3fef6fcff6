"""The check that comes before the fused kernels are chosen: it sees what is wrong, and says it once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_kernels.interaction_attention import reference, self_check

CPU = torch.device("cpu")


def stand_in(u: Tensor, x: Tensor, target: Tensor, weight: Tensor, scale: Tensor, mask: Tensor, *rest: Any) -> Any:
    """What the kernels promise, by the reference."""
    companding, eps = rest
    return reference.interaction_attention(
        u, x, target, weight, target_scale=scale, companding=companding, key_padding_mask=mask, layer_norm_eps=eps
    )


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    self_check.is_right.cache_clear()
    yield
    self_check.is_right.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_right_kernels_pass_in_silence(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "fused_forward", stand_in)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert self_check.is_right(CPU, dtype)
        with torch.inference_mode():
            self_check.is_right.cache_clear()
            assert self_check.is_right(CPU, dtype)


def test_a_full_gpu_is_checked_as_well_as_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    def noted(u: Tensor, *rest: Any) -> Any:
        batches.append(u.shape[0])
        return stand_in(u, *rest)

    monkeypatch.setattr(self_check, "fused_forward", noted)
    monkeypatch.setattr(self_check, "processors", lambda _: 5)
    assert self_check.is_right(CPU, torch.float32)
    assert sorted(batches) == [2, 5]


class Halved(torch.autograd.Function):
    """Right forward, wrong backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


@pytest.mark.parametrize("fault", ["z", "kl", "dx", "nan", "raises"])
def test_a_fault_is_seen_and_said_once(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(u: Tensor, x: Tensor, *rest: Any) -> Any:
        if fault == "raises":
            raise RuntimeError("no kernel image is available\nand more")
        if fault == "dx":
            x = Halved.apply(x)
        z, kl = stand_in(u, x, *rest)
        if fault == "nan":
            z = z * float("nan")
        return (z * 1.01 if fault == "z" else z), (kl * 1.01 if fault == "kl" else kl)

    monkeypatch.setattr(self_check, "fused_forward", faulty)
    expected = "RuntimeError: no kernel image is available. The ref" if fault == "raises" else "relative error of"
    with pytest.warns(UserWarning, match=f"not used on cpu for torch.float32.*{expected}"):
        assert not self_check.is_right(CPU, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not self_check.is_right(CPU, torch.float32)

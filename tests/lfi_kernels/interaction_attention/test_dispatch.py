"""Which implementation is chosen, and what is said where the one that was asked for cannot run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lfi_kernels import InteractionQueryBlock
from lfi_kernels.interaction_attention import dispatch, tiles


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LFI_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)


CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize("is_right", [True, False])
def test_auto_on_a_gpu_is_triton_where_it_proves_right(is_right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def check(*about: Any) -> bool:
        asked.append(about)
        return is_right

    monkeypatch.setattr(dispatch, "is_right", check)
    expected = "triton" if is_right else "reference"
    assert dispatch.resolve(GPU, torch.bfloat16) == expected
    monkeypatch.setenv("LFI_KERNELS", "auto")
    assert dispatch.resolve(GPU, torch.float16) == expected
    assert asked == [(GPU, torch.bfloat16), (GPU, torch.float16)]


def test_auto_is_the_reference_where_triton_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "is_right", lambda *_: pytest.fail("nothing to check"))
    assert dispatch.resolve(CPU, torch.bfloat16) == "reference"
    assert dispatch.resolve(GPU, torch.float64) == "reference"
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    assert dispatch.resolve(GPU, torch.bfloat16) == "reference"


def test_reference_and_triton_are_forced_without_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "is_right", lambda *_: pytest.fail("nothing to check"))
    monkeypatch.setenv("LFI_KERNELS", "reference")
    assert dispatch.resolve(GPU, torch.bfloat16) == "reference"
    monkeypatch.setenv("LFI_KERNELS", "triton")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert dispatch.resolve(GPU, dtype) == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.resolve(CPU, torch.bfloat16) == "triton"


def test_what_cannot_be_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFI_KERNELS", "fast")
    with pytest.raises(ValueError, match=r'LFI_KERNELS must be "auto", "reference" or "triton", got \'fast\''):
        dispatch.resolve(GPU, torch.bfloat16)
    monkeypatch.setenv("LFI_KERNELS", "triton")
    with pytest.raises(ValueError, match=r"queries must be float16, .* got torch\.float64"):
        dispatch.resolve(GPU, torch.float64)
    with pytest.raises(ValueError, match=r"queries must be on a CUDA device .* got some on cpu.*TRITON_INTERPRET=1"):
        dispatch.resolve(CPU, torch.bfloat16)
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    for version, found in ((None, "none"), ("3.4.0", "3.4.0")):
        monkeypatch.setattr(dispatch, "triton_version", lambda version=version: version)
        with pytest.raises(ValueError, match=rf"LFI_KERNELS=triton needs triton 3.5 or newer, found {found}\."):
            dispatch.resolve(GPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("version", "is_enough"),
    [(None, False), ("3.4.0", False), ("3.5.0", True), ("3.10.1", True), ("4.0", True), ("unknown", True)],
)
def test_which_triton_is_enough(version: str | None, is_enough: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "triton_version", lambda: version)
    assert tiles.has_triton() is is_enough


@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_the_choice_does_not_break_a_compiled_graph() -> None:
    block = InteractionQueryBlock(8, 8, 2)
    queries, features = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    assert torch.equal(compiled(queries, features)[0], block(queries, features)[0])


@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_the_check_is_no_part_of_a_compiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "is_right", lambda *_: bool(torch.ones(2).sum() == 2))  # depends on data

    def either(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if dispatch._is_right(x.device, x.dtype) else x - 1

    torch._dynamo.reset()
    assert torch.equal(torch.compile(either, fullgraph=True, backend="eager")(torch.zeros(2)), torch.ones(2))

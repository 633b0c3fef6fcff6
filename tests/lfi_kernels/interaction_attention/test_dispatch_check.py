"""The check that comes before the fused kernels are chosen: it sees what is wrong, says it, and is remembered."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_kernels.interaction_attention import dispatch, reference

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where checks are remembered; the reference stands for the kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(dispatch, "projected_attention", reference.projected_attention)
    dispatch.is_right.cache_clear()
    yield tmp_path / "lfi_kernels" / "checks.json"
    dispatch.is_right.cache_clear()


def asked_again() -> bool:
    """As another process would."""
    dispatch.is_right.cache_clear()
    return dispatch.is_right(CPU, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_right_kernels_pass_in_silence(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.inference_mode():
            assert dispatch.is_right(CPU, dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert asked_again()


class Spoiled(torch.autograd.Function):
    """A result as it is, with a gradient that is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 1.1 * gradient


@pytest.mark.parametrize("part", ["o", "kl", "nan", "dq", "dx", "dw"])
def test_whatever_is_wrong_is_seen_and_said(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*given: Any) -> tuple[Tensor, Tensor]:
        leaves = list(given[:3])
        if part in ("dq", "dx", "dw"):
            place = ("dq", "dx", "dw").index(part)
            leaves[place] = Spoiled.apply(leaves[place])
        o, kl = reference.projected_attention(*leaves, *given[3:])
        return {"o": (1.1 * o, kl), "kl": (o, 1.1 * kl), "nan": (o, kl * float("nan"))}.get(part, (o, kl))

    monkeypatch.setattr(dispatch, "projected_attention", wrong)
    with pytest.warns(UserWarning, match=r"not used on cpu .* a relative error of .*LFI_KERNELS=reference"):
        assert not dispatch.is_right(CPU, torch.float32)
    monkeypatch.setattr(dispatch, "largest_error", lambda *_: pytest.fail("remembered"))
    with pytest.warns(UserWarning, match="a relative error"):
        assert not asked_again()


def test_what_cannot_run_is_said_and_tried_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(dispatch, "projected_attention", broken)
    with pytest.warns(UserWarning, match=r"found RuntimeError: out of memory\. The reference"):
        assert not dispatch.is_right(CPU, torch.float32)
    assert not file.exists()
    monkeypatch.setattr(dispatch, "projected_attention", reference.projected_attention)
    assert asked_again()


def test_it_is_asked_once_a_gpu_compiler_and_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []
    monkeypatch.setattr(dispatch, "largest_error", lambda _, dtype: asked.append(dtype) or 1e-6)
    assert dispatch.is_right(CPU, torch.float32)
    assert asked_again()
    assert asked == [torch.float32]
    assert list(json.loads(file.read_text()).values()) == [1e-6]
    assert dispatch.is_right(CPU, torch.float16)
    assert len(json.loads(file.read_text())) == 2
    monkeypatch.setattr(dispatch, "code", lambda: "other kernels")
    assert asked_again()
    assert asked == [torch.float32, torch.float16, torch.float32]
    assert [path.name for path in file.parent.iterdir()] == ["checks.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": "b"}', '{"KEY": true}', '{"KEY": NaN}', "\xff"])
def test_a_file_that_cannot_be_read_is_not_remembered(text: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(dispatch, "largest_error", lambda *_: asked.append(1) or 1e-6)
    assert dispatch.is_right(CPU, torch.float32)
    (key,) = json.loads(file.read_text())
    file.write_text(text.replace("KEY", key), encoding="latin-1")
    assert asked_again()
    assert asked_again()
    assert len(asked) == 2


def test_a_folder_that_cannot_be_written_costs_only_the_memory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.parent.write_text("a file where the folder should be")
    asked: list[int] = []
    monkeypatch.setattr(dispatch, "largest_error", lambda *_: asked.append(1) or 1e-6)
    assert dispatch.is_right(CPU, torch.float32)
    assert asked_again()
    assert len(asked) == 2

"""The steps of the one command for a GPU that run kernels, on a small shape."""

from __future__ import annotations

import pytest
import torch

from lfi_kernels.bench import gpu
from lfi_kernels.bench.shapes import Shape
from lfi_kernels.interaction_attention.tiles import Problem, Tile
from tests.lfi_kernels.interaction_attention.interpreted.test_triton_fused import DEVICE, LONG


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=LONG)], ids=["first and last", "every"])
def test_every_tile_of_every_kernel_is_run_compared_and_timed(every: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(_: str, model: str, patches: int, words: int, maps: int | None) -> Shape:
        return Shape(model="ViT-T/16", batch=1, words=min(words, 66), patches=20, query_dim=32, dtype="fp16", maps=maps)

    told: list[str] = []
    candidates = Problem.candidates
    if not every:
        monkeypatch.setattr(Problem, "candidates", lambda problem: candidates(problem)[:: len(candidates(problem)) - 1])
    monkeypatch.setattr(gpu, "_shape", small)
    monkeypatch.setattr(gpu, "_median_seconds", lambda run: 1e-3 if not every else run() and 1e-3)
    session = gpu.Session(DEVICE, 60.0, None, "", told.append)
    assert session.tiles()
    assert not any("WRONG" in line or "Error" in line for line in told)
    best = [line for line in told if "best" in line]
    assert len(best) == 5 + 2  # the products do not know how many queries there are


def test_a_tile_that_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(kernel="weights", dtype="float32", rows=64, columns=64, depth=64)
    told: list[str] = []
    monkeypatch.setattr(gpu, "_median_seconds", lambda run: 1e-3)
    session = gpu.Session(DEVICE, 60.0, None, "", told.append)

    def run(tile: Tile) -> tuple[torch.Tensor, ...]:
        if tile == problem.candidates()[1]:
            return (1.1 * torch.ones(3),)
        return (torch.ones(3),)

    assert not session._time_tiles("weights", problem, run)
    assert "WRONG" in told[1]
    assert str(problem.usual()) in told[-1]

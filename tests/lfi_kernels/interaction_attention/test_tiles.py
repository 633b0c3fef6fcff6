"""Tiles: no larger than the problem, the usual first."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lfi_kernels.interaction_attention.tiles import Kernel, Problem, blocks, clamp, power_of_two

VIT_S = Problem(kernel="project", dtype="bfloat16", rows=273_224, columns=256, depth=384)


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_candidates_start_with_the_usual_and_differ(kernel: Kernel, dtype: str) -> None:
    problem = replace(VIT_S, kernel=kernel, dtype=dtype)
    assert problem.candidates()[0] == problem.usual()
    assert len(set(problem.candidates())) == len(problem.candidates()) >= 2


def test_tiles_are_no_larger_than_the_problem() -> None:
    for tile in replace(VIT_S, rows=3, columns=40, depth=40).candidates():
        assert tile.rows == 64  # the least of the matrix units
        assert tile.columns == 64
        assert tile.depth <= 64
    assert replace(VIT_S, dtype="float32", rows=3).usual().rows == 16
    assert replace(VIT_S, columns=768).usual().columns == 256
    assert replace(VIT_S, columns=192).usual().columns == 64  # divides them


def test_attention_takes_small_tiles_of_patches_without_a_pipeline() -> None:
    attend = replace(VIT_S, kernel="forward", rows=16, columns=32)
    assert replace(attend, depth=20).usual().depth == 32
    assert {tile.stages for tile in replace(attend, depth=20).candidates()} == {1}
    assert replace(attend, depth=196).usual().stages == 2


def test_more_rows_or_wide_heads_take_more_warps_backward() -> None:
    attend = replace(VIT_S, kernel="backward", rows=16, columns=32, depth=196)
    assert attend.usual().warps == 4
    assert replace(attend, rows=32).usual().warps == 8
    assert replace(attend, columns=256).usual().warps == 8


@given(st.integers(1, 10_000), st.integers(1, 500))
def test_blocks_cover_the_size(size: int, block: int) -> None:
    assert blocks(size, block) * block >= size > (blocks(size, block) - 1) * block
    assert power_of_two(size) >= size > power_of_two(size) // 2
    assert clamp(size, 16, 64) in (16, 32, 64)


def test_a_problem_names_all_that_the_tile_depends_on() -> None:
    changes = {"kernel": "weights", "dtype": "float16", "rows": 1, "columns": 2, "depth": 3, "note": "other"}
    names = {str(replace(VIT_S, **{name: value})) for name, value in changes.items()}  # type: ignore[arg-type]
    assert len(names | {str(VIT_S)}) == len(changes) + 1
    assert str(replace(VIT_S, rows=273_225)) == str(VIT_S)  # not by the batch to the last patch
    told = Problem.of("forward", torch.zeros(1, dtype=torch.float16), {"rows": 1, "columns": 2, "depth": 3}, "note")
    assert str(told) == "forward; float16; 1 x 2 x 3; note"

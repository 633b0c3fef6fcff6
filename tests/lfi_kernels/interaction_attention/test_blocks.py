"""Tiles: no larger than the problem, and parts that cover it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfi_kernels.interaction_attention.blocks import Problem, split, tiles

VIT_S = Problem(
    kernel="forward", dtype="bfloat16", target="uint8", rows=64, patches=196, dim=384, layer_norm=True, fills=True
)


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_candidates_start_with_the_usual_and_differ(kernel: Literal["forward", "backward"], dtype: str) -> None:
    candidates = replace(VIT_S, kernel=kernel, dtype=dtype).candidates()
    assert candidates[0] == replace(VIT_S, kernel=kernel, dtype=dtype).usual()
    assert len(set(candidates)) == len(candidates) >= 3


def test_tiles_are_no_larger_than_the_problem() -> None:
    for blocks in replace(VIT_S, rows=3, patches=20, dim=40).candidates():
        assert blocks.rows == 64  # the least of the matrix units
        assert blocks.patches == 32
        assert blocks.channels <= 64
    assert replace(VIT_S, dtype="float32", rows=3).usual().rows == 16
    assert replace(VIT_S, patches=1).usual().patches == 16


def test_a_vit_at_224_pixels_is_one_tile() -> None:
    for kernel in ("forward", "backward"):
        assert replace(VIT_S, kernel=kernel).usual().patches >= 196  # type: ignore[arg-type]


@given(st.integers(1, 300), st.integers(0, 500), st.integers(1, 200))
def test_parts_cover_the_tiles_and_only_small_batches_are_cut(count: int, samples: int, processors: int) -> None:
    turns, parts = split(count, samples, processors)
    assert turns * parts >= count
    assert turns * (parts - 1) < count  # no part is empty
    if samples >= processors:
        assert parts == 1
    if samples:
        assert parts * samples <= max(processors, samples)


def test_a_part_for_every_processor_that_would_idle() -> None:
    assert split(4, 64, 132) == (2, 2)
    assert split(4, 8, 132) == (1, 4)
    assert split(4, 132, 132) == (4, 1)
    assert tiles(197, 64) == 4


def test_a_problem_names_all_that_the_tiles_depend_on() -> None:
    other = {"kernel": "backward", "dtype": "float16", "target": "none", "rows": 128, "patches": 256, "dim": 192}
    names = {str(replace(VIT_S, **{name: value})) for name, value in other.items()}  # type: ignore[arg-type]
    names |= {str(replace(VIT_S, layer_norm=False)), str(replace(VIT_S, fills=False)), str(VIT_S)}
    assert len(names) == len(other) + 3

"""How queries and heads are put into the rows of a program; what the kernels compute is tested in interpreted/."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from lfi_kernels.interaction_attention.tiles import Tile
from lfi_kernels.interaction_attention.triton_fused import Maps, Rows, readable, samples

TILE = Tile(rows=64, columns=64, depth=64, warps=4, stages=2)


@given(st.sampled_from([1, 2, 3, 4, 6, 8, 12]), st.integers(1, 2000), st.integers(1, 256))
def test_rows_hold_whole_heads_and_all_queries(heads: int, words: int, width: int) -> None:
    rows = Rows.of(TILE, heads, words, width, 16)
    assert heads % rows.heads == 0
    assert rows.heads * rows.words <= rows.block_rows
    assert rows.heads * width <= rows.block_columns
    assert rows.words <= rows.block_words
    assert rows.words >= min(words, 64)
    assert rows.heads == 1 or (rows.heads * rows.words <= 64 and rows.heads * width <= 64)
    for size in (rows.words, rows.block_rows, rows.block_columns, rows.block_words):
        assert size & (size - 1) == 0
    assert rows.stages == 2 or max(rows.block_rows, rows.block_columns) < 64


def test_the_usual_student_has_two_heads_in_a_program() -> None:
    rows = Rows.of(TILE, 4, 16, 32, 16)
    assert (rows.heads, rows.words, rows.block_rows, rows.block_columns) == (2, 16, 32, 64)
    assert Rows.of(TILE, 4, 80, 32, 16).heads == 1


def test_each_query_knows_the_row_of_its_map() -> None:
    target, index = torch.rand(2, 7, dtype=torch.float64), (torch.tensor([0, 1]), torch.tensor([2, 0]))
    maps = Maps.of((2, 3), target, torch.ones(2), None, None, *index, "sqrt")
    assert maps.row is not None
    assert maps.row.tolist() == [[-1, -1, 0], [1, -1, -1]]
    assert maps.row.dtype == torch.int32
    assert maps.target is not None
    assert maps.target.dtype == torch.float32
    assert not maps.is_sqrt
    dense = Maps.of((2, 3), torch.zeros(2, 3, 7, dtype=torch.uint8), None, torch.ones(2, 3), None, None, None, "sqrt")
    assert dense.row is None
    assert dense.target is not None
    assert dense.target.shape == (6, 7)
    assert dense.is_sqrt


def test_nothing_is_copied_that_a_kernel_can_read() -> None:
    q = torch.zeros(1, 3, 8).expand(4, -1, -1)
    assert samples(q) is q
    assert samples(q.mT).is_contiguous()
    x, maps = torch.full((1, 2, 3), float("nan")), Maps.of((1, 3), *(None,) * 6, "sqrt")  # type: ignore[arg-type]
    assert readable(x, maps) is x
    hidden = Maps.of((1, 3), None, None, None, torch.tensor([[True, False]]), None, None, "sqrt")
    assert (readable(x, hidden)[0, 0] == 0).all()

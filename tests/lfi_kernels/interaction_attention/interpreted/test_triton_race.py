"""The kernel of the race probe computes what it says, both ways: under the interpreter, and on GPUs without the fault."""

from __future__ import annotations

import pytest
import torch

from lfi_kernels.bench.triton_race import TILES, probe, product_kernel
from tests.lfi_kernels.interaction_attention.interpreted.test_triton_fused import DEVICE
from tests.lfi_kernels.interaction_attention.interpreted.test_triton_fused_bfloat16 import fused  # noqa: F401


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU may have the fault: the probe is there to tell")
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("twice", [False, True])
def test_nothing_races_where_programs_run_one_after_the_other(
    tile: tuple[int, int, int, int, int], twice: bool
) -> None:
    assert probe("cpu", tile, twice, rows=128) < 1e-6


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU may have the fault: the probe is there to tell")
def test_rows_that_no_program_takes_are_wrong() -> None:
    """The error is of what the kernel wrote: 64 rows are half a tile of 128, so none is written."""
    errors = [probe("cpu", tile, True, rows=64) for tile in TILES]
    assert [error != error for error in errors] == [True, False, True]  # NaN


@pytest.mark.parametrize("twice", [False, True])
def test_products_and_sums_of_rows(twice: bool) -> None:
    g = torch.Generator().manual_seed(1)
    x, w = (torch.randint(-4, 5, size, generator=g).bfloat16().to(DEVICE) for size in ((32, 64), (64, 16)))
    y, sums = (torch.full(size, float("nan"), device=DEVICE) for size in ((32, 16), (32,)))
    told = {"D": 64, "N": 16, "BLOCK_T": 16, "BLOCK_N": 16, "BLOCK_D": 16}
    product_kernel[(2,)](x, w, y, sums, **told, TWICE=twice, num_stages=1)
    assert torch.equal(y, x.float() @ w.float())  # small whole numbers: nothing is rounded
    assert torch.equal(sums, x.float().sum(1))

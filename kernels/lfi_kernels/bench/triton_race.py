# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs
"""The smallest kernel that shows what the fused ones avoid: a tile that feeds a matrix product and registers at once.

Triton (3.6 and 3.8 were seen) gives such a tile of a pipelined loop one slot too few on sm_90, and overwrites it while
the product still reads it. Loaded twice, once for each, it is right. `probe` runs both on a GPU; the tests compile both
for one that need not be there, and must see the fault in the first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILES = ((128, 256, 64, 8, 3), (64, 256, 32, 4, 3), (128, 128, 64, 8, 2))
"""Rows, columns, depth, warps, stages."""


@triton.jit
def product_kernel(
    p_x,  # [T, D] bf16
    p_w,  # [D, N] bf16
    p_y,  # [T, N] fp32: x w
    p_sums,  # [T] fp32: sums of the rows of x
    D: tl.constexpr,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TWICE: tl.constexpr,
):
    i_t = tl.program_id(0).to(tl.int64) * BLOCK_T
    o_t, o_n, o_d = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    b_y = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    b_sums = tl.zeros([BLOCK_T], tl.float32)
    for i_d in range(0, D, BLOCK_D):
        p_tile = p_x + i_t * D + o_t[:, None] * D + (i_d + o_d)[None, :]
        b_x = tl.load(p_tile)
        b_w = tl.load(p_w + (i_d + o_d)[:, None] * N + o_n[None, :])
        b_y = tl.dot(b_x, b_w, b_y)
        if TWICE:
            b_x = tl.load(p_tile, eviction_policy="evict_first")
        b_sums += tl.sum(b_x.to(tl.float32), 1)
    tl.store(p_y + i_t * N + o_t[:, None] * N + o_n[None, :], b_y)
    tl.store(p_sums + i_t + o_t, b_sums)


def probe(device: str, tile: tuple[int, int, int, int, int], twice: bool, rows: int = 128 * 1024) -> float:
    """Return the relative error of the product with one of `TILES`, which is loaded once or twice."""
    dim = 1024
    rows_of_tile, columns, depth, warps, stages = tile
    g = torch.Generator(device).manual_seed(0)
    x, w = (torch.randn(*size, generator=g, device=device).bfloat16() for size in ((rows, dim), (dim, columns)))
    truth = x.float() @ w.float()
    y, sums = torch.full_like(truth, float("nan")), truth.new_empty(rows)
    product_kernel[(rows // rows_of_tile,)](
        *(x, w, y, sums),
        D=dim,
        N=columns,
        BLOCK_T=rows_of_tile,
        BLOCK_N=columns,
        BLOCK_D=depth,
        TWICE=twice,
        num_warps=warps,
        num_stages=stages,
    )
    return float((y - truth).norm() / truth.norm())

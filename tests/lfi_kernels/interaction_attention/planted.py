"""A product whose tile also feeds registers, which triton pipelines wrongly; and one that loads it twice."""

from __future__ import annotations

import json
import sys

import torch
import triton
import triton.language as tl

from lfi_kernels.interaction_attention.triton_report import compile_source, races, source


@triton.jit
def product_kernel(
    p_x, p_w, p_y, p_sums,
    D: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TWICE: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BM
    o_m, o_n, o_k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    b_y = tl.zeros([BM, BN], tl.float32)
    b_sums = tl.zeros([BM], tl.float32)
    for k in range(0, D, BK):
        p_tile = p_x + i * D + o_m[:, None] * D + (k + o_k)[None, :]
        b_x = tl.load(p_tile)
        b_w = tl.load(p_w + (k + o_k)[:, None] * N + o_n[None, :])
        b_y = tl.dot(b_x, b_w, b_y)
        if TWICE:
            b_x = tl.load(p_tile, eviction_policy="evict_first")
        b_sums += tl.sum(b_x.to(tl.float32), 1)
    tl.store(p_y + i * N + o_m[:, None] * N + o_n[None, :], b_y)
    tl.store(p_sums + i + o_m, b_sums)


def found(twice: bool, tile: tuple[int, int, int, int, int]) -> list[str]:
    def empty(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    rows, columns, depth, warps, stages = tile
    x, w = empty(1024, 1024, dtype=torch.bfloat16), empty(1024, 256, dtype=torch.bfloat16)
    told = {"p_x": x, "p_w": w, "p_y": empty(1024, 256), "p_sums": empty(1024), "D": 1024, "N": 256}
    told |= {"BM": rows, "BN": columns, "BK": depth, "TWICE": twice}
    return races(compile_source(source(product_kernel, told), warps, stages).asm["ttgir"])


if __name__ == "__main__":
    for tile in ((128, 256, 64, 8, 3), (64, 256, 32, 4, 3), (128, 128, 64, 8, 2)):
        sys.stdout.write(json.dumps({"once": found(False, tile), "twice": found(True, tile)}) + "\n")

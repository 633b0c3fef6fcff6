"""What `races` says of a product whose tile feeds registers too, and of one that loads it twice; for sm_90."""

from __future__ import annotations

import json
import sys

import torch

from lfi_kernels.bench.triton_race import TILES, product_kernel
from lfi_kernels.interaction_attention.triton_report import compile_source, races, source


def found(twice: bool, tile: tuple[int, int, int, int, int]) -> list[str]:
    def empty(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    rows, columns, depth, warps, stages = tile
    x, w = empty(1024, 1024, dtype=torch.bfloat16), empty(1024, columns, dtype=torch.bfloat16)
    told = {"p_x": x, "p_w": w, "p_y": empty(1024, columns), "p_sums": empty(1024), "D": 1024, "N": columns}
    told |= {"BLOCK_T": rows, "BLOCK_N": columns, "BLOCK_D": depth, "TWICE": twice}
    return races(compile_source(source(product_kernel, told), warps, stages).asm["ttgir"])


if __name__ == "__main__":
    for tile in TILES:
        sys.stdout.write(json.dumps({"once": found(False, tile), "twice": found(True, tile)}) + "\n")

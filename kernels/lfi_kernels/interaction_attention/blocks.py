"""How large the tiles of the fused kernels are, by shape and dtype. Plain Python: it imports without triton.

The scores of a tile, [BLOCK_R, BLOCK_N] in fp32, stay in registers while D is walked through twice in pieces of
BLOCK_D: once to build them, once to use them. So D has no limit, and no accumulator is D wide. The second walk reads
the tile of X again, backwards, so that it finds in the L2 cache what the first walk read last. Where N exceeds BLOCK_N,
a program takes several tiles in turn.

The sizes were chosen by the compiler's report for sm_90 (registers, spills, shared memory); no GPU has timed them.

Letters: R = H*M rows of a sample, N patch, D channel.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """One kernel's tile, and how it is run.

    Attributes:
        rows: BLOCK_R.
        patches: BLOCK_N.
        channels: BLOCK_D.
        warps: warps of a program.
        stages: depth of the software pipeline over D.
    """

    rows: int
    patches: int
    channels: int
    warps: int
    stages: int


def forward_blocks(rows: int, patches: int, dim: int, itemsize: int) -> Blocks:
    """Tile of the forward kernel for R = `rows`, N = `patches`, D = `dim` and `itemsize` bytes a number."""
    if itemsize == 4:
        block_r, block_n = _clamp(rows, 16, 64), _clamp(patches, 16, 128)
        return Blocks(rows=block_r, patches=block_n, channels=_clamp(dim, 16, 32), warps=8, stages=3)
    # 64 rows are the least that the matrix units of sm_90 take at once.
    return Blocks(rows=64, patches=_clamp(patches, 16, 256), channels=_clamp(dim, 16, 64), warps=16, stages=3)


def backward_blocks(rows: int, patches: int, dim: int, itemsize: int) -> Blocks:
    """Tile of the backward kernel. It reads U and dZ once a tile of patches, so that wide tiles save most."""
    if itemsize == 4:
        block_r, block_n = _clamp(rows, 16, 64), _clamp(patches, 16, 64)
        return Blocks(rows=block_r, patches=block_n, channels=16, warps=8, stages=2)
    return Blocks(rows=64, patches=_clamp(patches, 16, 256), channels=_clamp(dim, 16, 32), warps=8, stages=3)


def tiles(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def split(tiles_of_patches: int, samples: int, processors: int) -> tuple[int, int]:
    """Tiles that a program takes in turn, and programs that share the patches of a sample (or of a tile of its rows).

    Sharing costs partial results in memory, so it is for batches too small to fill the processors.
    """
    wanted = min(tiles_of_patches, max(1, processors // max(1, samples)))
    turns = tiles(tiles_of_patches, wanted)
    return turns, tiles(tiles_of_patches, turns)


def _clamp(size: int, least: int, most: int) -> int:
    """The power of two that holds `size`, within the bounds, which are powers of two as well."""
    return min(max(1 << max(0, size - 1).bit_length(), least), most)

"""How large the tiles of the fused kernels are, by shape and dtype. Plain Python: it imports without triton.

The scores of a tile, [BLOCK_R, BLOCK_N] in fp32, stay in registers while D is walked through twice in pieces of
BLOCK_D: once to build them, once to use them. So D has no limit, and no accumulator is D wide. The second walk reads
the tile of X again, backwards, so that it finds in the L2 cache what the first walk read last. Where N exceeds BLOCK_N,
a program takes several tiles in turn, and each turn but the first costs one more reading and writing of z or dU.

The usual sizes were chosen by the compiler's report for sm_90 (registers, spills, shared memory) and by counting bytes;
no GPU has timed them. `tuning` measures the candidates.

Letters: R = H*M rows of a sample, N patch, D channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


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

    def __str__(self) -> str:
        return f"{self.rows} x {self.patches} x {self.channels}, {self.warps} warps, {self.stages} stages"


# rows, patches, channels, warps, stages, the usual first. 64 rows are the least that the matrix units of sm_90 take.
_OF_16_BITS = {
    "forward": (
        (64, 256, 64, 8, 3),
        (64, 256, 64, 16, 3),
        (64, 256, 32, 8, 4),
        (64, 128, 64, 8, 3),
        (64, 128, 64, 4, 3),
        (64, 64, 64, 4, 3),
        (128, 128, 64, 8, 3),
        (64, 64, 32, 4, 2),  # fits into the shared memory of small GPUs
    ),
    "backward": (
        (64, 256, 32, 8, 3),
        (64, 256, 64, 8, 2),
        (64, 256, 32, 16, 3),
        (64, 128, 64, 8, 3),
        (64, 128, 32, 8, 4),
        (64, 64, 64, 8, 3),
        (128, 128, 32, 8, 2),
        (128, 64, 64, 8, 2),
        (64, 32, 32, 4, 2),
    ),
}
_OF_32_BITS = {
    "forward": ((64, 128, 32, 8, 2), (64, 64, 32, 8, 2), (64, 64, 32, 4, 2)),
    "backward": ((64, 64, 32, 8, 2), (64, 32, 16, 8, 2), (64, 32, 32, 4, 2)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What the best tiles depend on.

    Attributes:
        kernel: which of the two.
        dtype: of u and x, as torch names it.
        target: dtype of the target, or `none`.
        rows: R.
        patches: N.
        dim: D.
        layer_norm: whether it is part of the op.
        fills: whether there are at least as many samples as processors.
    """

    kernel: Literal["forward", "backward"]
    dtype: str
    target: str
    rows: int
    patches: int
    dim: int
    layer_norm: bool
    fills: bool

    def __str__(self) -> str:
        norm, batch = ("with" if self.layer_norm else "no"), ("full" if self.fills else "few")
        sizes = f"R {self.rows}, N {self.patches}, D {self.dim}"
        return f"{self.kernel}; {self.dtype}; target {self.target}; {sizes}; {norm} layer norm; {batch} samples"

    def usual(self) -> Blocks:
        """The tiles that run where nothing was measured."""
        return next(self._fitting())

    def candidates(self) -> list[Blocks]:
        """The tiles worth measuring, each once, the usual first."""
        return list(dict.fromkeys(self._fitting()))

    def tolerance(self) -> float:
        """How far two right results of different tiles may lie apart, as a share of their norm."""
        return {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}[self.dtype]

    def _fitting(self) -> Iterator[Blocks]:
        """Tiles no larger than the problem."""
        is_narrow = self.dtype != "float32"
        for rows, patches, channels, warps, stages in (_OF_16_BITS if is_narrow else _OF_32_BITS)[self.kernel]:
            yield Blocks(
                rows=_clamp(self.rows, 64 if is_narrow else 16, rows),
                patches=_clamp(self.patches, 16, patches),
                channels=_clamp(self.dim, 16, channels),
                warps=warps,
                stages=stages,
            )


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

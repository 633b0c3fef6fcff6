"""Target maps of a batch, cut to what the students see of the images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lfi_pipeline.data.replay import view_maps
from lfi_pipeline.targets import decode_maps
from lfi_pipeline.training.data import Batch
from lfi_pipeline.training.mixing import mix_maps

Grid = tuple[int, int]  # (rows, columns)


@dataclass(frozen=True, slots=True)
class Cut:
    """Maps on one grid.

    Attributes:
        maps: fp32 [B, L, M, N]; a row sums to 1, or to 0 where nothing of it is seen.
        kept: fp32 [B, L, M], share of the word's mass that is seen: the w_m of DESIGN section 5; 0 for padding.
        words: int64 [B, M], -1 for padding.
    """

    maps: Tensor
    kept: Tensor
    words: Tensor


class CutTargets:
    """Maps of a batch on any student's grid; each grid is cut once, whichever students share it.

    Args:
        batch: with maps.
        codec: of the stored maps.
        uniform: replace every present map by the uniform one (a control).
    """

    def __init__(self, batch: Batch, codec: str, *, uniform: bool = False) -> None:
        assert batch.maps is not None
        assert batch.scale is not None
        assert batch.words is not None
        self._batch, self._words = batch, batch.words
        self._stored = decode_maps(batch.maps, batch.scale, codec)  # [B, L, M, gh, gw]
        if uniform:
            cells = self._stored.shape[-1] * self._stored.shape[-2]
            self._stored = (self._stored.sum((-2, -1), keepdim=True) > 0).float().expand_as(self._stored) / cells
        self._cuts: dict[Grid, Cut] = {}

    def on(self, grid: Grid) -> Cut:
        """Return the maps on `grid`."""
        if grid not in self._cuts:
            self._cuts[grid] = self._cut(grid)
        return self._cuts[grid]

    def _cut(self, grid: Grid) -> Cut:
        mass, words = view_maps(self._stored, self._batch.windows, grid), self._words
        if self._batch.mix is not None:
            mass, words = mix_maps(mass, words, self._batch.mix)
        mass = mass.flatten(-2)  # [B, L, M, N]
        kept = mass.sum(-1)
        return Cut(mass / kept.clamp_min(1e-12)[..., None], kept * (words >= 0)[:, None], words)

"""How much do the maps of one word differ from tap to tap?

Jensen-Shannon divergence: Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information
Theory 37(1), 1991, with equal weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lfi_pipeline.data.replay import WHOLE, view_maps


def jensen_shannon(left: Tensor, right: Tensor) -> Tensor:
    """Return the divergence of each pair of maps, in nats, from 0 (equal) to ln 2 (nothing in common).

        JS(P, Q) = KL(P || M) / 2 + KL(Q || M) / 2,   M = (P + Q) / 2

    Both maps are densities over the same image: the coarser one is laid on the finer grid with its mass where it was.

    Args:
        left: [P, rows, columns], non-negative; each map is divided by its sum.
        right: [P, rows, columns], on the same grid or another.

    Returns:
        fp64 [P]; NaN where either map is all zero.
    """
    grid = max(left.shape[-2], right.shape[-2]), max(left.shape[-1], right.shape[-1])
    p, q = _shares(left, grid), _shares(right, grid)
    middle = (p + q) / 2
    gain = torch.xlogy(p, p) + torch.xlogy(q, q) - 2 * torch.xlogy(middle, middle)
    return (gain.sum(1) / 2).clamp(0, math.log(2))


def tap_divergences(maps: Sequence[Tensor]) -> list[float | None]:
    """Return the mean divergence of each tap's maps from those of the tap before, in nats.

    Args:
        maps: per tap, the map of each word [P, rows, columns].

    Returns:
        One value for each tap but the first; None where no word has a map at both taps.
    """
    result: list[float | None] = []
    for before, after in itertools.pairwise(maps):
        found = jensen_shannon(before, after)
        found = found[~found.isnan()]
        result.append(float(found.mean()) if len(found) else None)
    return result


def _shares(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the share [P, rows * columns] of each map's mass in each cell of `grid`."""
    whole = torch.tensor([WHOLE.window], device=maps.device).expand(len(maps), 4)
    laid = view_maps(maps.double(), whole, grid).flatten(1)
    return laid / laid.sum(1, keepdim=True)

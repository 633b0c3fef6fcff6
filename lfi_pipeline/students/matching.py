"""Which slot answers for which word: a one-to-one assignment of least total cost, for each image."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def match_slots(cost: Tensor, present: Tensor) -> Tensor:
    """Assign a slot of its own to each present word, so that the sum of the pairs' costs is least.

    Solved exactly by scipy's `linear_sum_assignment` (Crouse, "On implementing 2D rectangular assignment algorithms",
    IEEE TAES 2016), on the CPU. The choice passes no gradient; the costs of the chosen pairs do.

    Args:
        cost: [B, K, M], of slot k for word m. What is not finite counts as dearer than all else.
        present: bool [B, M]; other words get no slot.

    Returns:
        int64 [B, M], the slot of each word; -1 for a word that is not present and, where more than K words are, for
        those beyond the K whose pairs cost least.
    """
    costs = cost.detach().cpu().double().numpy()
    costs = np.where(np.isfinite(costs), costs, 1e30)
    match = torch.full((cost.shape[0], cost.shape[2]), -1, dtype=torch.long)
    for image, rows in enumerate(present.cpu().numpy()):
        words = np.flatnonzero(rows)
        slots, chosen = linear_sum_assignment(costs[image][:, words])
        match[image, words[chosen]] = torch.from_numpy(slots)
    return match.to(cost.device)


def matched_cost(cost: Tensor, match: Tensor) -> Tensor:
    """Take from cost [B, K, M] each word's own pair: [B, M], exactly 0 and without gradient where match is -1."""
    own = cost.gather(1, match.clamp_min(0)[:, None])[:, 0]
    return torch.where(match >= 0, own, 0.0)

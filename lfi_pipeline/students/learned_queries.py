"""Interaction queries in mode `learned`: slots matched one to one to a word's maps, and read out as class logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.students.config import QueryConfig
from lfi_pipeline.students.queries import QueryOutput, QueryStack, make_blocks


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


class SlotReadout(nn.Module):
    """Class logits of the slots, added to those of the pooled features. The forms are this project's choice.

    `concat` (the better one where both were measured): one linear map of all states side by side, so each slot has
    weights of its own.
    `max`: every slot gives class logits by one shared linear map; a class takes a smooth maximum over the slots
    (log of the mean of exp), so one slot that sees it is enough and it does not matter which.

    Args:
        config: slots, width and readout.
        classes: width of the head.
    """

    def __init__(self, config: QueryConfig, classes: int) -> None:
        super().__init__()
        self.form = config.readout
        self.linear = nn.Linear(config.width * (config.slots if self.form == "concat" else 1), classes)

    def forward(self, states: Tensor) -> Tensor:
        """Return [B, classes] from states [B, K, Dq]."""
        states = F.layer_norm(states, states.shape[-1:])
        logits: Tensor
        if self.form == "concat":
            logits = self.linear(states.flatten(1))
        else:
            logits = self.linear(states).logsumexp(1) - math.log(states.shape[1])
        return logits


class LearnedQueries(QueryStack):
    """K slots, carried through the student from tap to tap and kept with it: their final states feed the head.

        Q_0 = slots,  Q_t = block_t(Q_{t-1}, X_t)      (DESIGN section 5)

    Args:
        tap_widths: D_t of each tap.
        config: slots, width, heads and state.
    """

    def __init__(self, tap_widths: Sequence[int], config: QueryConfig) -> None:
        super().__init__(config, make_blocks(tap_widths, config))
        self.slots = nn.Parameter(torch.empty(config.slots, config.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Slots at right angles, of the length sqrt(Dq) that a layer norm gives: no two start out alike."""
        nn.init.orthogonal_(self.slots, gain=self.slots.shape[1] ** 0.5)

    def forward(
        self,
        features: Sequence[Tensor],
        targets: Sequence[Tensor] | None = None,
        weights: Sequence[Tensor] | None = None,
    ) -> QueryOutput:
        """Let the slots look at the taps; where there are targets, match them to the words.

        Each word gets one slot per image, the same at all taps: least total w KL over the taps, one to one. More
        words than slots: the words beyond the best K go without.

        Args:
            features: per tap, patch tokens [B, N_t, D_t].
            targets: per tap, maps [B, M, N_t]; a row sums to 1 or is all zero.
            weights: per tap, w [B, M]; 0 for padding and for a word without a map.

        Raises:
            ValueError: not one target and one weight per tap, or a shape that does not fit.
        """
        seeds = self._seeds(features)
        state, costs = self.carried(seeds, features, targets, weights, lambda block: block.costs)
        if not costs or weights is None:
            return QueryOutput(state, seeds)
        present = torch.stack([weight > 0 for weight in weights]).any(0)
        match = match_slots(torch.stack(costs).sum(0), present)
        return QueryOutput(state, seeds, [matched_cost(cost, match) for cost in costs], match)

    def maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return where each slot looks at each tap: head means [B, K, N_t], rows sum to 1."""
        return self.attended(self._seeds(features), features)

    def _seeds(self, features: Sequence[Tensor]) -> Tensor:
        return self.slots.expand(features[0].shape[0], -1, -1)

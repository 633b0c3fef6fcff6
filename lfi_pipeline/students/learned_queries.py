"""Interaction queries in mode `learned`: slots that know no text, each matched to a word's maps while training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lfi_pipeline.students.matching import match_slots, matched_cost
from lfi_pipeline.students.queries import QueryConfig, QueryOutput
from lfi_pipeline.students.query_stack import QueryStack, make_blocks


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

"""What queries of both modes are: one block a tap, and a state that persists between them or starts anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lfi_kernels import InteractionQueryBlock
from lfi_pipeline.students.queries import QueryConfig


class QueryStack(nn.Module):
    """Blocks of interaction queries, shallow to deep.

    Args:
        config: state.
        blocks: one a tap, as `make_blocks` gives them.
    """

    def __init__(self, config: QueryConfig, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.state = config.state
        self.blocks: Any = blocks

    def entering(self, seeds: Tensor, state: Tensor) -> Tensor:
        """Return what a tap starts from: the state of the tap before, or the seeds where it is reset."""
        return seeds if self.state == "reset" else state

    def carried(
        self,
        seeds: Tensor,
        features: Sequence[Tensor],
        targets: Sequence[Tensor] | None,
        weights: Sequence[Tensor] | None,
        compare: Callable[[Any], Callable[..., tuple[Tensor, Tensor]]],
    ) -> tuple[Tensor, list[Tensor]]:
        """Carry the queries through the taps.

        Args:
            seeds: Q_0 [B, R, Dq].
            features: per tap, patch tokens [B, N_t, D_t].
            targets, weights: per tap, as `QueryOutput` is made of; None compares nothing.
            compare: from a block to what updates the state and compares it with the target.

        Returns:
            The state after the last tap, and per tap what was compared; empty without targets.

        Raises:
            ValueError: not one target and one weight per tap, or a shape that does not fit.
        """
        state, compared = seeds, []
        nothing = [None] * len(self.blocks)
        for block, x, target, weight in zip(self.blocks, features, targets or nothing, weights or nothing, strict=True):
            before = self.entering(seeds, state)
            if target is None:
                state = block(before, x)[0]
            else:
                state, found = compare(block)(before, x, target, weight)
                compared.append(found)
        return state, compared

    def attended(self, seeds: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Return where each query looks at each tap: head means [B, R, N_t], rows sum to 1.

        Args:
            seeds: Q_0 [B, R, Dq].
            features: per tap, patch tokens [B, N_t, D_t].
        """
        maps, state = [], seeds
        for block, x in zip(self.blocks, features, strict=True):
            before = self.entering(seeds, state)
            maps.append(block.attention(before, x).mean(1))
            state = block(before, x)[0]
        return maps


def make_blocks(tap_widths: Sequence[int], config: QueryConfig) -> nn.ModuleList:
    """Return a block for each tap of width D_t."""
    return nn.ModuleList(InteractionQueryBlock(config.width, width, config.heads) for width in tap_widths)

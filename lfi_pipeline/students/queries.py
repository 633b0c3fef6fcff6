"""Interaction queries: the words of a caption, carried through the student from tap to tap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lfi_kernels import InteractionQueryBlock
from lfi_pipeline.errors import ConfigError, UnknownNameError

STATES = ("persistent", "reset")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryConfig:
    """Shape of the queries (this project's choice: the paper's is not public).

    Attributes:
        width: Dq, channels of a query.
        heads: attention heads at each tap.
        state: `persistent` carries Q_t to the next tap; `reset` starts every tap from Q_0 (the ablation).
    """

    width: int = 128
    heads: int = 4
    state: str = "persistent"

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise UnknownNameError("state", self.state, STATES)
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"query width must be divisible by heads, got {self.width} and {self.heads}.")


class InteractionQueries(nn.Module):
    """Queries in `text` mode: seeded by the words' text embeddings, dropped when the student is exported.

        Q_0 = W_in e(word),  Q_t = block_t(Q_{t-1}, X_t)      (DESIGN section 5)

    Args:
        embedding_dim: E, of the teacher's text embeddings.
        tap_widths: D_t of each tap.
        config: width, heads and state.
    """

    def __init__(self, embedding_dim: int, tap_widths: Sequence[int], config: QueryConfig) -> None:
        super().__init__()
        self.state = config.state
        self.seed = nn.Linear(embedding_dim, config.width)
        self.blocks: Any = nn.ModuleList(
            InteractionQueryBlock(config.width, width, config.heads) for width in tap_widths
        )

    def forward(
        self, words: Tensor, features: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> Tensor:
        """Return the interaction loss, mean over taps of L_t = sum_m w_m mean_h KL(T_m || P_h,m) / sum_m w_m.

        Args:
            words: text embeddings [B, M, E].
            features: per tap, patch tokens [B, N_t, D_t].
            targets: per tap, maps [B, M, N_t]; a row sums to 1 or is all zero.
            weights: per tap, w [B, M]; 0 for padding.

        Returns:
            scalar, nats; exactly zero where no word has weight.
        """
        losses = []
        first = state = self.seed(words)
        for block, x, target, weight in zip(self.blocks, features, targets, weights, strict=True):
            state, kl = block(state, x, target, weight)
            losses.append(kl.mean(1).sum() / weight.sum().clamp_min(1e-6))
            if self.state == "reset":
                state = first
        return torch.stack(losses).mean()

    def maps(self, words: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Return where each word looks at each tap: head means [B, M, N_t], rows sum to 1."""
        maps = []
        first = state = self.seed(words)
        for block, x in zip(self.blocks, features, strict=True):
            maps.append(block.attention(state, x).mean(1))
            state = first if self.state == "reset" else block(state, x)[0]
        return maps

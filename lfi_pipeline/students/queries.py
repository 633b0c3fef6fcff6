"""Interaction queries at the taps of a student, each seeded by the text embedding of a word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_kernels import InteractionQueryBlock
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students.config import QueryConfig


@dataclass(frozen=True, slots=True)
class Supervision:
    """The words of B images and where the teacher saw them.

    Attributes:
        words: text embeddings [B, M, E].
        targets: per tap, maps [B, M, N_t]; a row sums to 1 or is all zero. None: words without maps, to be scored.
        weights: per tap, w [B, M]; 0 for padding and for a word without a map. None as `targets` is.
    """

    words: Tensor
    targets: Sequence[Tensor] | None = None
    weights: Sequence[Tensor] | None = None


@dataclass(frozen=True, slots=True)
class QueryOutput:
    """What the queries hold after the last tap.

    Attributes:
        states: Q_L [B, M, Dq].
        seeds: Q_0 [B, M, Dq].
        kl: per tap, w_m mean_h KL(T_m || P_h) [B, M], in nats; empty where no targets were given.
    """

    states: Tensor
    seeds: Tensor
    kl: list[Tensor] = field(default_factory=list)


class TextQueries(nn.Module):
    """Queries seeded by text embeddings: a scaffold of training beside a linear head, and what the query head is made of.

        Q_0 = W_in e(word),  Q_t = block_t(Q_{t-1}, X_t)

    Args:
        embedding_dim: E, of the teacher's text embeddings.
        tap_widths: D_t of each tap, shallow to deep.
        config: width, heads and state.
        presence: add the readout of `presence_scores`.
    """

    def __init__(
        self, embedding_dim: int, tap_widths: Sequence[int], config: QueryConfig, *, presence: bool = False
    ) -> None:
        super().__init__()
        self.seed = nn.Linear(embedding_dim, config.width)
        self.state = config.state
        self.blocks: Any = nn.ModuleList(
            InteractionQueryBlock(config.width, width, config.heads) for width in tap_widths
        )
        self.presence: nn.Module | None = PresenceScore(config.width) if presence else None

    def forward(
        self,
        words: Tensor,
        features: Sequence[Tensor],
        targets: Sequence[Tensor] | None = None,
        weights: Sequence[Tensor] | None = None,
    ) -> QueryOutput:
        """Run the words' queries through the taps, and compare their attention maps with the targets, if there are any.

        Args:
            words: text embeddings [B, M, E].
            features: per tap, patch tokens [B, N_t, D_t].
            targets: per tap, maps [B, M, N_t]; a row sums to 1 or is all zero.
            weights: per tap, w [B, M]; 0 for padding and for a word without a map.

        Raises:
            ValueError: not one target and one weight per tap, or a shape that does not fit.
        """
        seeds = self.seed(words)
        state, divergences = seeds, []
        nothing = [None] * len(self.blocks)
        for block, x, target, weight in zip(self.blocks, features, targets or nothing, weights or nothing, strict=True):
            state, kl = block(self.state_at_tap(seeds, state), x, target, weight)
            if target is not None:
                divergences.append(kl.mean(1))
        return QueryOutput(state, seeds, divergences)

    def state_at_tap(self, seeds: Tensor, state: Tensor) -> Tensor:
        """Return what a tap starts from: the state of the tap before, or the seeds where it is reset."""
        return seeds if self.state == "reset" else state

    def maps(self, words: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Return where each word looks at each tap: head means [B, M, N_t], rows sum to 1."""
        seeds = self.seed(words)
        maps, state = [], seeds
        for block, x in zip(self.blocks, features, strict=True):
            before = self.state_at_tap(seeds, state)
            maps.append(block.attention(before, x).mean(1))
            if block is not self.blocks[-1]:
                state = block(before, x)[0]
        return maps

    def presence_scores(self, output: QueryOutput) -> Tensor:
        """Score each word of `output` as a logit of being in the image: fp32 [B, M], whether it has a map or not.

        Raises:
            ConfigError: the queries were built without the readout.
        """
        if self.presence is None:
            raise ConfigError("Words can be scored only by a student that was trained with the presence term.")
        scores: Tensor = self.presence(output)
        return scores


class PresenceScore(nn.Module):
    """Logit of a word being in the image: what its query gathered, compared with its seed.

        score = (Q_L - Q_0) W LN(Q_0)^T / sqrt(Dq) + b

    The form is this project's choice. What was gathered is not normalised: at the start the blocks gather nothing,
    and a layer norm of nothing has a gradient of 1 / sqrt(its epsilon).

    Args:
        width: Dq.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.zeros(()))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, output: QueryOutput) -> Tensor:
        """Return [B, M] in fp32."""
        width = self.weight.shape[0]
        gathered = (output.states - output.seeds).float() @ self.weight.float()
        seeds = F.layer_norm(output.seeds.float(), (width,))
        return (gathered * seeds).sum(-1) / math.sqrt(width) + self.bias

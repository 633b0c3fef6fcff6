"""Interaction queries: one block a tap with a state that persists, and the mode in which words seed them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_kernels import InteractionQueryBlock
from lfi_pipeline.core.errors import ConfigError, UnknownNameError

MODES = ("text", "learned")
STATES = ("persistent", "reset")
READOUTS = ("concat", "max")


MOST_SLOTS, MOST_WIDTH = 1024, 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryConfig:
    """Shape of the queries (this project's choice: the paper's is not public).

    Attributes:
        mode: `text` seeds one query per word by its embedding; `learned` has `slots` free ones that feed the head.
        slots: K, queries of mode `learned`.
        width: Dq, channels of a query.
        heads: attention heads at each tap.
        state: `persistent` carries Q_t to the next tap; `reset` starts every tap from Q_0 (the ablation).
        readout: how the slots' final states become class logits, see `SlotReadout`; of mode `learned`.
    """

    mode: str = "text"
    slots: int = 6
    width: int = 128
    heads: int = 4
    state: str = "persistent"
    readout: str = "concat"

    def __post_init__(self) -> None:
        for kind, value, choices in (
            ("query mode", self.mode, MODES),
            ("state", self.state, STATES),
            ("readout", self.readout, READOUTS),
        ):
            if value not in choices:
                raise UnknownNameError(kind, value, choices)
        if not 1 <= self.width <= MOST_WIDTH:
            raise ConfigError(f"query width must be 1 to {MOST_WIDTH}, got {self.width}.")
        if self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"query width must be divisible by heads, got {self.width} and {self.heads}.")
        if not 1 <= self.slots <= MOST_SLOTS:
            raise ConfigError(f"slots must be 1 to {MOST_SLOTS}, got {self.slots}.")


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
    """What the queries hold after the last tap. R is M in mode `text`, K in mode `learned`.

    Attributes:
        states: Q_L [B, R, Dq].
        seeds: Q_0 [B, R, Dq].
        kl: per tap, w_m mean_h KL(T_m || P_h) [B, M] of each word's own (`text`) or matched (`learned`) query, in
            nats; empty where no targets were given.
        match: [B, M], the slot of each word, -1 for a word without one; None but in mode `learned` with targets.
    """

    states: Tensor
    seeds: Tensor
    kl: list[Tensor] = field(default_factory=list)
    match: Tensor | None = None


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


class TextQueries(QueryStack):
    """Queries seeded by the words' text embeddings; a scaffold that the exported student drops.

        Q_0 = W_in e(word),  Q_t = block_t(Q_{t-1}, X_t)      (DESIGN section 5)

    Args:
        embedding_dim: E, of the teacher's text embeddings.
        tap_widths: D_t of each tap.
        config: width, heads and state.
        presence: add the readout of `presence_scores`.
    """

    def __init__(
        self, embedding_dim: int, tap_widths: Sequence[int], config: QueryConfig, *, presence: bool = False
    ) -> None:
        seed = nn.Linear(embedding_dim, config.width)
        super().__init__(config, make_blocks(tap_widths, config))
        self.seed = seed
        self.presence = PresenceScore(config.width) if presence else None

    def forward(
        self,
        words: Tensor,
        features: Sequence[Tensor],
        targets: Sequence[Tensor] | None = None,
        weights: Sequence[Tensor] | None = None,
    ) -> QueryOutput:
        """Let the words look at the taps, and compare what they look at with the targets, if there are any.

        Args:
            words: text embeddings [B, M, E].
            features: per tap, patch tokens [B, N_t, D_t].
            targets: per tap, maps [B, M, N_t]; a row sums to 1 or is all zero.
            weights: per tap, w [B, M]; 0 for padding and for a word without a map.

        Raises:
            ValueError: not one target and one weight per tap, or a shape that does not fit.
        """
        seeds = self.seed(words)
        state, divergences = self.carried(seeds, features, targets, weights, lambda block: block)
        return QueryOutput(state, seeds, [kl.mean(1) for kl in divergences])

    def maps(self, words: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Return where each word looks at each tap: head means [B, M, N_t], rows sum to 1."""
        return self.attended(self.seed(words), features)

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
    """Is the word in the image? What its query gathered, against the seed it set out with.

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

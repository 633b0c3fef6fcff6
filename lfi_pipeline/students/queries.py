"""Interaction queries beside a linear head: words seed them (`text`), or slots are matched to words (`learned`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
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

    def state_at_tap(self, seeds: Tensor, state: Tensor) -> Tensor:
        """Return what a tap starts from: the state of the tap before, or the seeds where it is reset."""
        return seeds if self.state == "reset" else state

    def run_taps(
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
            before = self.state_at_tap(seeds, state)
            if target is None:
                state = block(before, x)[0]
            else:
                state, found = compare(block)(before, x, target, weight)
                compared.append(found)
        return state, compared

    def attention_maps(self, seeds: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Return where each query looks at each tap: head means [B, R, N_t], rows sum to 1.

        Args:
            seeds: Q_0 [B, R, Dq].
            features: per tap, patch tokens [B, N_t, D_t].
        """
        maps, state = [], seeds
        for block, x in zip(self.blocks, features, strict=True):
            before = self.state_at_tap(seeds, state)
            maps.append(block.attention(before, x).mean(1))
            if block is not self.blocks[-1]:
                state = block(before, x)[0]
        return maps


def make_blocks(tap_widths: Sequence[int], config: QueryConfig) -> nn.ModuleList:
    """Return a block for each tap of width D_t."""
    return nn.ModuleList(InteractionQueryBlock(config.width, width, config.heads) for width in tap_widths)


class TextQueries(QueryStack):
    """Queries seeded by the words' text embeddings; a scaffold that the exported student drops.

        Q_0 = W_in e(word),  Q_t = block_t(Q_{t-1}, X_t)

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
        self.presence: nn.Module | None = PresenceScore(config.width) if presence else None

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
        state, divergences = self.run_taps(seeds, features, targets, weights, lambda block: block)
        return QueryOutput(state, seeds, [kl.mean(1) for kl in divergences])

    def maps(self, words: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Return where each word looks at each tap: head means [B, M, N_t], rows sum to 1."""
        return self.attention_maps(self.seed(words), features)

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
        self.form = "concat" if config.readout == "auto" else config.readout
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

        Q_0 = slots,  Q_t = block_t(Q_{t-1}, X_t)

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
        state, costs = self.run_taps(seeds, features, targets, weights, lambda block: block.costs)
        if not costs or weights is None:
            return QueryOutput(state, seeds)
        present = torch.stack([weight > 0 for weight in weights]).any(0)
        match = match_slots(torch.stack(costs).sum(0), present)
        return QueryOutput(state, seeds, [matched_cost(cost, match) for cost in costs], match)

    def maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return where each slot looks at each tap: head means [B, K, N_t], rows sum to 1."""
        return self.attention_maps(self._seeds(features), features)

    def _seeds(self, features: Sequence[Tensor]) -> Tensor:
        return self.slots.expand(features[0].shape[0], -1, -1)

"""Interaction queries in mode `text`: the words of a caption, carried through the student from tap to tap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.errors import ConfigError
from lfi_pipeline.students.queries import QueryConfig, QueryOutput
from lfi_pipeline.students.query_stack import QueryStack, make_blocks


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

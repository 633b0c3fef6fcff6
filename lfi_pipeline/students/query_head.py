"""Interaction queries at the taps of a student, and the head that reads a logit from the query of each class.

A query is seeded by the text embedding of a word, and its state goes from tap to tap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lfi_kernels import InteractionQueryBlock
from lfi_kernels.interaction_attention import Companding
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students.config import SCALES, QueryConfig
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.vocabulary import canonical, readable_names


@dataclass(frozen=True, slots=True)
class Supervision:
    """The words of B images and where the teacher saw them; or, of a query head, rows that teach its classes.

    Attributes:
        words: text embeddings [B, M, E]; None for rows.
        targets: per tap, maps [B, M, N_t], or [R, N_t] of rows; each sums to 1 or is all zero. None: words without maps,
            to be scored. Or maps as a cache stores them, uint8 codes, where `scales` has a value for the tap.
        weights: per tap, w [B, M] or [R]; 0 for padding and for a word without a map. None as `targets` is.
        scales: per tap, fp32 [B, M] or [R], what code 255 stands for, or None where the target is no codes. None: none is.
        companding: the curve of the codes.
        row_batch, row_query: int64 [R], image and class of each row, as `InteractionQueryBlock` takes them.
    """

    words: Tensor | None
    targets: Sequence[Tensor] | None = None
    weights: Sequence[Tensor] | None = None
    scales: Sequence[Tensor | None] | None = None
    companding: Companding = "sqrt"
    row_batch: Tensor | None = None
    row_query: Tensor | None = None


@dataclass(frozen=True, slots=True)
class QueryOutput:
    """What the queries hold after the last tap.

    Attributes:
        states: Q_L [B, M, Dq].
        seeds: Q_0 [B, M, Dq], or [1, M, Dq].
        kl: per tap, w_m mean_h KL(T_m || P_h) [B, M], or [R] of rows, in nats; empty where no targets were given.
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
        config: width, heads, scale of scores and state.
        presence: add the readout of `presence_scores`.
    """

    def __init__(
        self, embedding_dim: int, tap_widths: Sequence[int], config: QueryConfig, *, presence: bool = False
    ) -> None:
        super().__init__()
        self.seed = nn.Linear(embedding_dim, config.width)
        self.state = config.state
        scale = (config.width // config.heads) ** SCALES[config.scale]
        self.blocks: Any = nn.ModuleList(
            InteractionQueryBlock(config.width, width, config.heads, scale=scale) for width in tap_widths
        )
        self.presence: nn.Module | None = PresenceScore(config.width) if presence else None

    def seeds_of(self, embeddings: Tensor) -> Tensor:
        """Return the first states of words, from their embeddings [..., E]: [..., Dq]."""
        seeds: Tensor = self.seed(embeddings)
        return seeds

    def forward(
        self,
        words: Tensor,
        features: Sequence[Tensor],
        targets: Sequence[Tensor] | None = None,
        weights: Sequence[Tensor] | None = None,
        scales: Sequence[Tensor | None] | None = None,
        companding: Companding = "sqrt",
    ) -> QueryOutput:
        """Run the words' queries through the taps, and compare their attention maps with the targets, if there are any.

        Args:
            words: text embeddings [B, M, E].
            features: per tap, patch tokens [B, N_t, D_t].
            targets: per tap, maps [B, M, N_t]; a row sums to 1 or is all zero.
            weights: per tap, w [B, M]; 0 for padding and for a word without a map.
            scales, companding: of targets that are uint8 codes, as in `Supervision`.

        Raises:
            ValueError: not one target and one weight per tap, or a shape that does not fit.
        """
        return self._carry(self.seeds_of(words), features, Supervision(words, targets, weights, scales, companding))

    def _carry(self, seeds: Tensor, features: Sequence[Tensor], taught: Supervision) -> QueryOutput:
        """Run queries with these seeds, [B, M, Dq] or [1, M, Dq], through the taps."""
        state, divergences = seeds, []
        nothing = [None] * len(self.blocks)
        maps = (each or nothing for each in (taught.targets, taught.weights, taught.scales))
        for block, x, *target in zip(self.blocks, features, *maps, strict=True):
            rows = {"row_batch": taught.row_batch, "row_query": taught.row_query}
            state, kl = block(self.state_at_tap(seeds, state), x, *target, taught.companding, **rows)
            if target[0] is not None:
                divergences.append(kl.mean(1))
        return QueryOutput(state, seeds, divergences)

    def state_at_tap(self, seeds: Tensor, state: Tensor) -> Tensor:
        """Return what a tap starts from: the state of the tap before, or the seeds where it is reset."""
        return seeds if self.state == "reset" else state

    def maps(self, words: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Return where each word looks at each tap: head means [B, M, N_t], rows sum to 1."""
        seeds = self.seeds_of(words)
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


CLASS, TEXT = "class", "text"
CLASSES_AT_ONCE = 1024
"""Classes that are carried through the taps at a time; the maps of more are never in memory together."""


class QueryHead(TextQueries):
    """Interaction queries that are the classifier: one for each class, in training and at inference.

        Q_0 = W_in c(name of the class),  Q_t = block_t(Q_{t-1}, X_t),  c = (e - mean of the classes' e) at unit length
        `class`:  logit_k = w_k . LN(Q_L,k) + b_k
        `text`:   logit_k = LN(Q_L,k) W . LN(Q_0,k) / sqrt(Dq) + b, where nothing belongs to a class but its name

    A class is seeded exactly as a word of a caption is. So the maps of the words that name a class teach the query of
    that class, and words without a class can be asked for their maps, and with `text` for their score.
    The formulas, with their reasons, are in the README of this folder.

    Args:
        classes: text embeddings [K, E] of the class names; K may be 0, where only words are asked for.
        tap_widths: D_t of each tap.
        config: width, heads, scale of scores, state and readout.
        presence: add a readout for words beside the one of the classes; `text` needs none, its own reads both.
    """

    def __init__(
        self,
        classes: Tensor,
        tap_widths: Sequence[int],
        config: QueryConfig,
        *,
        presence: bool = False,
    ) -> None:
        readout = CLASS if config.readout == "auto" else config.readout
        super().__init__(classes.shape[1], tap_widths, config, presence=presence and readout == CLASS)
        self.register_buffer("classes", classes.detach().float().clone())
        self.register_buffer("centre", self.classes.mean(0) if len(classes) > 1 else torch.zeros(classes.shape[1]))
        self.readout: ClassReadout | None = None
        if readout == TEXT:
            self.presence = TextReadout(config.width)
        else:
            self.readout = ClassReadout(len(classes), config.width)

    classes: Tensor
    centre: Tensor

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # of a student that was trained before seeds were centred: nothing is taken off its words
        state_dict.setdefault(f"{prefix}centre", torch.zeros_like(self.centre))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def seeds_of(self, embeddings: Tensor) -> Tensor:
        """Return W_in c of embeddings [..., E]: [..., Dq].

        Text embeddings share most of what they are (cosines of .7 and more), which a seed would show before the word.
        """
        return super().seeds_of(F.normalize(embeddings - self.centre, dim=-1))

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logit of every class, fp32 [B, K].

        Args:
            features: per tap, patch tokens [B, N_t, D_t].
        """
        parts = []
        for first in range(0, len(self.classes), CLASSES_AT_ONCE):
            chosen = slice(first, first + CLASSES_AT_ONCE)
            if torch.is_grad_enabled() and len(self.classes) > CLASSES_AT_ONCE:
                parts.append(checkpoint(self._block_logits, chosen, *features, use_reentrant=False))
            else:
                parts.append(self._block_logits(chosen, *features))
        return torch.cat(parts, 1) if parts else features[0].new_zeros(len(features[0]), 0)

    def taught_logits(self, features: Sequence[Tensor], rows: Supervision) -> tuple[Tensor, QueryOutput]:
        """Return the logit of every class, and how far their maps are from those of `rows`: one pass for both.

        Args:
            features, rows: as of `logits`; maps, and the classes that they teach.
        """
        seeds = self.seeds_of(self.classes)[None]
        output = self._carry(seeds, features, rows)
        return self._read(output.states, seeds, slice(None)), output

    def logits_and_maps(
        self, features: Sequence[Tensor], embeddings: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return logits [B, R] and, per tap, where each query looked: head means [B, R, N_t], rows sum to 1.

        Args:
            features: per tap, patch tokens [B, N_t, D_t].
            embeddings: text embeddings [R, E] of names to ask for, only with the readout `text`; None: the classes.
        """
        assert embeddings is None or self.readout is None
        seeds = self.seeds_of(self.classes if embeddings is None else embeddings)[None]
        state, maps = self._gather(seeds, features, with_maps=True)
        return self._read(state, seeds, slice(None)), maps

    def _block_logits(self, chosen: slice, *features: Tensor) -> Tensor:
        seeds = self.seeds_of(self.classes[chosen])[None]
        state, _ = self._gather(seeds, features)
        return self._read(state, seeds, chosen)

    def _gather(
        self, seeds: Tensor, features: Sequence[Tensor], *, with_maps: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Carry seeds [1, R, Dq], shared by all images, through the taps."""
        state, maps = seeds, []
        for block, x in zip(self.blocks, features, strict=True):
            before = self.state_at_tap(seeds, state)
            if not with_maps and block.is_fused(before):
                state, _ = block(before, x)
                continue
            state, looked = gather(block, before, x)
            if with_maps:
                maps.append(looked.mean(1))
        return state, maps

    def _read(self, state: Tensor, seeds: Tensor, chosen: slice) -> Tensor:
        logits: Tensor
        if self.readout is not None:
            logits = self.readout(state, chosen)
        else:
            assert self.presence is not None
            logits = self.presence(QueryOutput(state, seeds))
        return logits


def gather(block: InteractionQueryBlock, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `block` without a target by building keys and values, which is cheaper for many queries.

    Scores of R queries over N patches cost N D Dq to build the keys and R N Dq to compare, against R H N D of the
    block, which folds W_k into the query. Plain PyTorch, so that exporters can read it.

    Args:
        block: of a tap.
        state: [B, R, Dq], or [1, R, Dq] where all images share it.
        x: patch tokens [B, N, D].

    Returns:
        The new state [B, R, Dq], and P [B, H, R, N].
    """
    dim, heads = block.query_dim, block.heads

    def split(rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], heads, dim // heads).transpose(1, 2)  # [B, H, rows, d]

    query = split(F.layer_norm(state, (dim,)) @ block.w_q * block.scale)
    x = F.layer_norm(x, x.shape[-1:])
    looked = (query @ split(x @ block.w_k).mT).softmax(-1)
    gathered = (looked.to(x.dtype) @ split(x @ block.w_v).to(x.dtype)).transpose(1, 2).flatten(2)
    return state + gathered @ block.w_o, looked


class ClassReadout(nn.Module):
    """logit_k = w_k . LN(Q_L,k) + b_k.

    Args:
        classes: K.
        width: Dq.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width).uniform_(-1, 1) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, states: Tensor, chosen: slice = slice(None)) -> Tensor:
        """Return [B, R] in fp32, for states [B, R, Dq] of the `chosen` classes."""
        states = F.layer_norm(states.float(), states.shape[-1:])
        return (states * self.weight[chosen].float()).sum(-1) + self.bias[chosen].float()


class TextReadout(nn.Module):
    """logit = LN(Q_L) W . LN(Q_0) / sqrt(Dq) + b, for any query, whatever name it was seeded by.

    Args:
        width: Dq.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width).uniform_(-1, 1) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, output: QueryOutput) -> Tensor:
        """Return [B, R] in fp32."""
        width = self.weight.shape[0]
        states = F.layer_norm(output.states.float(), (width,)) @ self.weight.float()
        return (states * F.layer_norm(output.seeds.float(), (width,))).sum(-1) / math.sqrt(width) + self.bias.float()


def class_embeddings(store: TargetStore) -> Tensor:
    """Return the text embedding that seeds the query of each class of a cache, fp32 [K, E].

    A class whose name is a word of the cache takes the word's embedding, so that its query is the one which the word's
    maps teach. Another takes its embedding in the teacher's zero-shot classifier: of the same text tower and space,
    but of whole prompts.

    Raises:
        ConfigError: no classes, or one with neither embedding.
        CorruptTargetsError: stored embeddings are damaged.
    """
    classes = store.spec.dataset.classes
    if not classes:
        raise ConfigError(f"A query head needs classes, and {store.spec.dataset.name} has none. Choose head 'linear'.")
    words = {canonical(word): place for place, word in reversed(list(enumerate(store.vocabulary.words)))}
    own = torch.from_numpy(store.vocabulary.embeddings).float()
    places = [words.get(canonical(name)) for name in readable_names(classes)]
    missing = [k for k, place in enumerate(places) if place is None]
    if not missing:
        return own[torch.tensor(places)]
    if store.zero_shot is None:
        raise ConfigError(
            f"A query head needs the text embedding of every class name; {store.path} holds none of {len(missing)} of "
            f"{len(classes)} classes, {classes[missing[0]]!r} the first. Extract it again with this release, or choose "
            "head 'linear'."
        )
    embeddings = torch.from_numpy(store.zero_shot.embeddings).float().clone()
    for k, place in enumerate(places):
        if place is not None:
            embeddings[k] = own[place]
    return embeddings

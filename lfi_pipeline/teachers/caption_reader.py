"""A CoCa's decoder reading captions, written so that many words are differentiated at once and nothing twice.

The gradient of a word's score at the decoder's view of the image needs three steps, each done once for many words:

- The score is the log-probability of the word's tokens where they are emitted. Its gradient at the last hidden state
  is `W[token] - softmax(h W) W^T`, and only rows that emit a wanted token need logits.
- From there to the scores and the mixed values of each cross-attention, autograd runs through the rows of the text
  alone: keys and values of the image are constants to it. All words go through as one batched vector-Jacobian product.
- From scores dS and mixed values dO to the tokens z that the decoder sees, in closed form: `dz = sum over layers and
  heads of dS^T (q W_k) + P^T (dO W_v)`, with the affine part of each layer's LayerNorm folded into W_k and W_v, so
  that all layers meet in one normalised z.

A row depends on earlier rows only, so words are taken in groups by where they stand, and each group reads no further
than its last word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.teachers.attention import (
    KEY,
    QUERY,
    VALUE,
    Attended,
    attend,
    attend_fixed,
    batched_gradients,
    merge,
    project,
    projection,
    split_heads,
)
from lfi_pipeline.teachers.settings import on_device
from lfi_pipeline.teachers.text import Word

# Numbers that a group of words may keep: gradients at the decoder's view of the image (words * B * Q * D), some at a time.
GROUP_NUMBERS = 1 << 26


@dataclass(frozen=True)
class Request:
    """Which words of which captions to map.

    Attributes:
        ids: token ids [B, T].
        words: for each caption the words that get a row, None for an empty one.
        row: `emitting` or `reading`.
        layers: names of decoder layers, for kinds that have several.
    """

    ids: Tensor
    words: Sequence[Sequence[Word | None]]
    row: str
    layers: Sequence[str]

    @property
    def slots(self) -> int:
        """M, the most rows of any caption (1 at least)."""
        return max(1, max(len(words) for words in self.words))

    @cached_property
    def last_rows(self) -> list[int]:
        """For each slot the last decoder row that any of its words needs; -1 where it has none."""
        return [
            max((row for words in self.words if slot < len(words) for row in self._rows(words[slot])), default=-1)
            for slot in range(self.slots)
        ]

    @property
    def length(self) -> int:
        """Decoder rows that are needed at all (1 at least)."""
        return max(*self.last_rows, 0) + 1

    @cached_property
    def weights(self) -> Tensor:
        """Weights [M, B, length] that average over the rows of each word; all zero where there is none."""
        weights = torch.zeros(self.slots, len(self.words), self.length)
        for b, words in enumerate(self.words):
            for slot, word in enumerate(words):
                if rows := self._rows(word):
                    weights[slot, b, torch.tensor(rows)] = 1 / len(rows)
        return on_device(weights, self.ids.device)

    def rows_of(self, slots: Sequence[int]) -> Tensor:
        """Captions and rows of theirs [2, n] that any word of `slots` needs; known here, where a GPU's mask is not."""
        words = [(b, row[slot]) for b, row in enumerate(self.words) for slot in slots if slot < len(row)]
        places = sorted({(b, row) for b, word in words for row in self._rows(word)})
        return on_device(torch.tensor(places).T, self.ids.device)

    def _rows(self, word: Word | None) -> list[int]:
        return [place - (self.row == "emitting") for place in (word.positions if word is not None else ())]

    def groups(self, largest: int) -> list[list[int]]:
        """Slots that have words, in groups of those that stand near each other.

        Reading M words in g groups costs about (g + 1) / 2 readings of the text, and their gradients M (g + 1) / 2g:
        g = sqrt(M) is about least.
        """
        slots = [slot for slot in range(self.slots) if self.last_rows[slot] >= 0]
        order = sorted(slots, key=self.last_rows.__getitem__)
        size = min(largest, math.ceil(math.sqrt(max(1, len(order)))))
        return [order[i : i + size] for i in range(0, len(order), size)]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the decoder sees of the images.

    Attributes:
        tokens: normalised without an affine part [B, Q, D].
        keys: of each decoder layer [B, H, Q, D/H].
        values: of each decoder layer [B, H, Q, D/H].
    """

    tokens: Tensor
    keys: list[Tensor]
    values: list[Tensor]


@dataclass(frozen=True, slots=True)
class Rows:
    """The decoder's reading of the first rows of the captions: last hidden state [B, T, D], each layer's look."""

    hidden: Tensor
    looks: list[Attended]


class CaptionReader:
    """Reads the captions of one request.

    Args:
        decoder: `open_clip.transformer.MultimodalTransformer`.
        request: the words wanted.
        text: embeddings [B, T, D] of the text tower, one a token.
    """

    def __init__(self, decoder: Any, request: Request, text: Tensor) -> None:
        self.decoder, self.request, self.text = decoder, request, text
        self.eps = float(decoder.cross_attn[0].ln_1_kv.eps)
        # per layer the key and the value projection [H, D/H, D] of tokens normalised without an affine part, and bias
        self._folded = [[_fold(each.attn, each.ln_1_kv, part) for part in (KEY, VALUE)] for each in decoder.cross_attn]
        self._layer_of = {f"text_decoder.cross_attn.{i}": i for i in range(len(decoder.cross_attn))}

    def see(self, tokens: Tensor) -> Seen:
        """Project the decoder's view of the images [B, Q, D] to keys and values of every layer, outside autograd."""
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=self.eps)
        with torch.no_grad():
            parts = [
                [split_heads(F.linear(normed, weight.flatten(0, 1), bias), len(weight)) for weight, bias in folded]
                for folded in self._folded
            ]
        return Seen(normed, [key for key, _ in parts], [value for _, value in parts])

    def read(self, seen: Seen, length: int) -> Rows:
        """Run the decoder over the first `length` rows."""
        x, mask, looks = self.text[:, :length], self.decoder.attn_mask[:length, :length], []
        blocks = zip(self.decoder.resblocks, self.decoder.cross_attn, seen.keys, seen.values, strict=True)
        for block, cross, key, value in blocks:
            normed = block.ln_1(x)
            query, *keyed = (project(block.attn, normed, part) for part in (QUERY, KEY, VALUE))
            x = x + block.ls_1(merge(block.attn, attend(query, keyed[0], keyed[1], mask).mixed))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
            looks.append(attend_fixed(project(cross.attn, cross.ln_1(x), QUERY), key, value))
            x = x + cross.ls_1(merge(cross.attn, looks[-1].mixed))
            x = x + cross.ls_2(cross.mlp(cross.ln_2(x)))
        return Rows(self.decoder.ln_final(x), looks)

    def chosen(self, rows: Rows) -> list[Attended]:
        """Return the cross-attention of each of the request's layers."""
        return [rows.looks[self._layer_of[name]] for name in self.request.layers]

    def readings(self, seen: Seen) -> Iterator[tuple[Tensor, Rows, Tensor]]:
        """Yield groups of slots [m], what is read up to their last row [B, T], and d s_w / d hidden [m, B, T, D].

        s_w is the log-probability of the word where it is emitted, mean over its tokens.
        """
        for slots in self.request.groups(max(1, GROUP_NUMBERS // seen.tokens.numel())):
            length = max(self.request.last_rows[slot] for slot in slots) + 1
            rows, group = self.read(seen, length), on_device(torch.tensor(slots), self.request.ids.device)
            weights = self.request.weights[group, :, :length]
            yield group, rows, weights[..., None] * self._of_log_probability(rows.hidden, *self.request.rows_of(slots))

    def _of_log_probability(self, hidden: Tensor, captions: Tensor, rows: Tensor) -> Tensor:
        """d log p(next token) / d hidden [B, T, D] at some rows of captions; zero elsewhere."""
        projection = self.decoder.text_projection  # [D, V]
        with torch.no_grad():
            targets = self.request.ids[captions, rows + 1]
            probabilities = torch.softmax((hidden[captions, rows] @ projection).float(), dim=-1)
            emitted = targets < projection.shape[1]  # coca_roberta's decoder has fewer tokens than its text tower
            own = projection.T[targets.clamp_max(projection.shape[1] - 1)]
            gradient = (own - probabilities @ projection.T) * emitted[:, None]
            return torch.zeros_like(hidden).index_put_((captions, rows), gradient)

    def at_looks(self, rows: Rows, cotangent: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients at the scores [m, B, H, T, Q] and at the mixed values [m, B, H, T, D/H] of every layer."""
        places = [look.scores for look in rows.looks] + [look.mixed for look in rows.looks]
        gradients = batched_gradients(rows.hidden, places, cotangent)
        return list(gradients[: len(rows.looks)]), list(gradients[len(rows.looks) :])

    def at_tokens(self, rows: Rows, cotangent: Tensor) -> Tensor:
        """Gradients at the normalised tokens that the decoder sees [m, B, Q, D]."""
        words, batch = cotangent.shape[:2]
        total: Tensor | None = None
        with torch.no_grad():
            layers = zip(rows.looks, *self.at_looks(rows, cotangent), self._folded, strict=True)
            for look, scores, mixed, ((to_key, _), (to_value, _)) in layers:
                queries = torch.einsum("bhtc,hcd->bhtd", look.query, to_key).flatten(1, 2).repeat(words, 1, 1)
                values = torch.einsum("mbhtc,hcd->mbhtd", mixed, to_value).flatten(0, 1).flatten(1, 2)
                probabilities = look.probabilities.flatten(1, 2).repeat(words, 1, 1)
                if total is None:
                    total = probabilities.transpose(1, 2) @ values  # [m B, Q, H T] @ [m B, H T, D]
                else:
                    total.baddbmm_(probabilities.transpose(1, 2), values)
                total.baddbmm_(scores.flatten(0, 1).flatten(1, 2).transpose(1, 2), queries)
        assert total is not None
        return total.view(words, batch, *total.shape[1:])

    def relevance_of_tokens(self, seen: Seen, rows: Rows, cotangent: Tensor) -> Tensor:
        """sum_d g x over the LayerNorms by which tokens x enter the layers [m, B, Q]: `dS (S - b) + P dO (V - b)`."""
        total = torch.zeros((), device=cotangent.device)
        with torch.no_grad():
            layers = zip(rows.looks, *self.at_looks(rows, cotangent), seen.keys, seen.values, strict=True)
            for block, (look, scores, mixed, key, value) in zip(self.decoder.cross_attn, layers, strict=True):
                key, value = (_without_bias(block.attn, heads, part) for heads, part in ((key, KEY), (value, VALUE)))
                by_key = scores * (look.query @ key.transpose(-2, -1))
                by_value = look.probabilities * (mixed @ value.transpose(-2, -1))
                total = total + (by_key + by_value).sum((2, 3))
        return total


def _fold(layer: nn.MultiheadAttention, norm: nn.LayerNorm, part: int) -> tuple[Tensor, Tensor]:
    """Weight [H, D/H, D] and bias [D] of a projection that takes in the affine part of the LayerNorm before it."""
    weight, bias = projection(layer, part)
    folded = weight @ norm.bias if bias is None else weight @ norm.bias + bias
    return (weight * norm.weight).view(layer.num_heads, -1, weight.shape[1]), folded


def _without_bias(layer: nn.MultiheadAttention, heads: Tensor, part: int) -> Tensor:
    bias = projection(layer, part)[1]
    return heads if bias is None else heads - bias.view(layer.num_heads, 1, -1)

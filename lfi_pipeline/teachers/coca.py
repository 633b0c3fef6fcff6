"""The CoCa family of open_clip as teachers: caption and image in, interaction maps out.

The decoder reads the caption while looking at the image through its cross-attention. Three facts of open_clip's
`coca_model.py` and `transformer.py` shape this file:

- The decoder does not see patches but the outputs of an attentional pooler, so a decoder map over the Q pooler outputs
  is composed with the pooler's own attention over CLS and N patches: `A = A_decoder [T, Q] @ A_pool [Q, 1+N]`. The
  first pooler query makes the image embedding and is not shown to the decoder: its row is left out. Configs without a
  pooler (coca_base) let the decoder see the patches, and the composition is the identity.
- It is a causal language model: the step that emits the token at position p is row p-1 (`emitting`); row p is the step
  after it was read (`reading`).
- No kind of map needs gradients inside the vision trunk: it runs once, without autograd.

The kinds are this project's choice (the paper's selection is not public):

- `attention`: head mean of the decoder's cross-attention at the word's rows, composed with the pooler.
- `gradcam`: A * relu(d logit_w / dA) of the decoder's cross-attention, head mean, composed with the pooler (the
  gradient weighting of Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679, equation 5, one layer at a time).
- `gradcam_pooler`: the same on the pooler's attention, summed over its queries.
- `relevance`: relu(sum_d g x) at the patch tokens that enter the pooler, g = d logit_w / dx (gradient times input).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from lfi_pipeline.errors import ConfigError, UnknownNameError
from lfi_pipeline.targets import LayerSpec, TeacherSpec
from lfi_pipeline.teachers.attention_probe import probe_attention
from lfi_pipeline.teachers.words import EncodedText, Word, encode_text

ROWS = ("emitting", "reading")


@dataclass(frozen=True, slots=True)
class InteractionMaps:
    """Maps of a batch.

    Attributes:
        maps: fp32 [B, L, M, gh, gw]; a row sums to 1, or is all zero where there is no word or nothing to show.
        kept: fp32 [B, L, M], share of the row's mass that lay on patches and not on the CLS token.
        image_embedding: fp32 [B, E], unit length.
    """

    maps: Tensor
    kept: Tensor
    image_embedding: Tensor


class CocaTeacher:
    """A CoCa model of open_clip with its tokenizer.

    Args:
        model: `open_clip.CoCa`; put in eval mode, parameters frozen.
        tokenizer: open_clip's `SimpleTokenizer` with the model's vocabulary.
        identity: name, tag, weights digest and family, recorded in the spec.
    """

    def __init__(self, model: Any, tokenizer: Any, identity: TeacherSpec) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.identity = identity
        visual = model.visual
        self.pooler = visual.attn_pool
        self.image_size: tuple[int, int] = tuple(visual.image_size)
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        pixels = getattr(visual, "preprocess_cfg", {})  # set where open_clip built the model
        self.mean: tuple[float, float, float] = tuple(pixels.get("mean", open_clip.OPENAI_DATASET_MEAN))
        self.std: tuple[float, float, float] = tuple(pixels.get("std", open_clip.OPENAI_DATASET_STD))
        self.embedding_dim = int(visual.output_dim)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of map this teacher can give."""
        return tuple(kind for kind in _KINDS if self.pooler is not None or kind != "gradcam_pooler")

    def layers(self, kind: str, count: int) -> tuple[LayerSpec, ...]:
        """Return the layers a map of `kind` is taken at: `count` decoder layers evenly spaced, or the only one.

        Raises:
            UnknownNameError: `kind` is not one of `kinds`.
            ConfigError: `count` is not between 1 and the number of decoder layers.
        """
        if kind not in self.kinds:
            raise UnknownNameError("map kind", kind, self.kinds)
        if kind == "relevance":
            return (LayerSpec(name="visual.trunk", depth=1.0),)
        if kind == "gradcam_pooler":
            return (LayerSpec(name="visual.attn_pool", depth=1.0),)
        total = len(self.model.text_decoder.cross_attn)
        if not 1 <= count <= total:
            raise ConfigError(f"layers must be 1 to {total} for {self.identity.name}, got {count}.")
        chosen = [round(total * (i + 1) / count) - 1 for i in range(count)]
        return tuple(LayerSpec(name=f"text_decoder.cross_attn.{i}", depth=(i + 1) / total) for i in chosen)

    def encode_text(self, caption: str) -> EncodedText:
        """Tokenise `caption` and find its content words."""
        return encode_text(self.tokenizer, caption)

    @torch.no_grad()
    def embed_words(self, words: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the text embedding of each word on its own, fp32 unit vectors [V, E]."""
        parts = [
            self.model.encode_text(self.tokenizer(list(words[i : i + batch_size])).to(self.device)).float()
            for i in range(0, len(words), batch_size)
        ]
        return torch.cat(parts).cpu() if parts else torch.zeros(0, self.embedding_dim)

    def interaction_maps(
        self,
        images: Tensor,
        texts: Sequence[EncodedText],
        words: Sequence[Sequence[Word | None]],
        *,
        kind: str,
        layers: Sequence[LayerSpec],
        row: str = "emitting",
    ) -> InteractionMaps:
        """Return the maps of `words[b]` (None leaves a row empty) while the teacher reads `texts[b]`.

        Args:
            images: normalised, [B, 3, H, W] at `image_size`, on `device`.
            texts: the caption of each image.
            words: for each image the words that get a row, at most M.
            kind: one of `kinds`.
            layers: as `layers(kind, ...)` returned them.
            row: `emitting` or (for `attention` only) `reading`.

        Raises:
            UnknownNameError: unknown kind or row.
            ConfigError: `reading` rows of a gradient kind (the gradient of a word's logit at a later row is zero).
        """
        if kind not in self.kinds:
            raise UnknownNameError("map kind", kind, self.kinds)
        if row not in ROWS:
            raise UnknownNameError("row", row, ROWS)
        if row == "reading" and kind != "attention":
            raise ConfigError(f"row 'reading' exists for the kind 'attention' only, got kind {kind!r}.")
        decoder = self.model.text_decoder
        probes = {f"text_decoder.cross_attn.{i}": block.attn for i, block in enumerate(decoder.cross_attn)}
        if self.pooler is not None:
            probes["visual.attn_pool"] = self.pooler.attn
        with torch.no_grad():
            tokens = self.model.visual._embeds(images)
            tokens = self.model.visual.transformer(tokens)
            ids = self._pad(texts)
            _, token_embeddings = self.model.text(ids)
        reading = _Reading(ids=ids, words=words, row=row, layers=[layer.name for layer in layers], grid=self.grid)
        needs_grad = kind != "attention"
        with torch.set_grad_enabled(needs_grad), probe_attention(probes) as probabilities:
            reading.patch_tokens = tokens.detach().requires_grad_(needs_grad)
            pooled, image_tokens = self.model.visual._pool(reading.patch_tokens)
            reading.logits = decoder(image_tokens, token_embeddings[:, :-1])
            reading.probabilities = probabilities
            embedding = (pooled @ self.model.visual.proj if self.model.visual.proj is not None else pooled).detach()
            mass = _KINDS[kind](reading)  # [B, L, M, 1+N or N]
        maps, kept = _normalised(mass.detach().float(), self.grid)
        return InteractionMaps(maps, kept, nn.functional.normalize(embedding.float(), dim=-1))

    def _pad(self, texts: Sequence[EncodedText]) -> Tensor:
        """Token ids [B, T], padded to the batch's longest caption: rows depend on earlier tokens only."""
        longest = max(len(text.ids) for text in texts)
        ids = torch.full((len(texts), longest), self.model.pad_id, dtype=torch.long)
        for i, text in enumerate(texts):
            ids[i, : len(text.ids)] = torch.tensor(text.ids)
        return ids.to(self.device)


@dataclass(slots=True)
class _Reading:
    """One forward pass: what the kinds compute their maps from."""

    ids: Tensor  # [B, T]
    words: Sequence[Sequence[Word | None]]
    row: str
    layers: list[str]
    grid: tuple[int, int]
    patch_tokens: Tensor = None  # type: ignore[assignment]  # [B, 1+N, D] entering the pooler
    logits: Tensor = None  # type: ignore[assignment]  # [B, T-1, vocabulary]
    probabilities: dict[str, Tensor] = None  # type: ignore[assignment]  # layer -> [B, H, rows, columns]

    @property
    def slots(self) -> int:
        return max(1, max(len(words) for words in self.words))

    def select(self, slot: int) -> Tensor:
        """Weights [B, T-1] that average over the rows of the word in `slot`; all zero where there is none."""
        weights = torch.zeros(len(self.words), self.ids.shape[1] - 1)
        for b, words in enumerate(self.words):
            word = words[slot] if slot < len(words) else None
            if word is not None:
                rows = [p - 1 if self.row == "emitting" else p for p in word.positions]
                weights[b, rows] = 1 / len(rows)
        return weights.to(self.ids.device)

    def word_logits(self, slot: int) -> Tensor:
        """Sum over the batch of the mean logit of the word in `slot` (images do not interact, so one sum serves)."""
        emitted = self.logits.float().gather(2, self.ids[:, 1:, None])[..., 0]  # [B, T-1]
        return (emitted * self.select(slot)).sum()

    def gradients(self, inputs: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Gradients of each slot's word logits in `inputs`."""
        last = self.slots - 1
        return [
            torch.autograd.grad(self.word_logits(slot), inputs, retain_graph=slot < last) for slot in range(self.slots)
        ]

    def to_patches(self, rows: Tensor) -> Tensor:
        """Compose decoder rows [..., B, Q] with the head-mean attention [B, Q, 1+N] of the pooler's last Q queries."""
        if "visual.attn_pool" not in self.probabilities:
            return rows
        pool = self.probabilities["visual.attn_pool"].mean(1)[:, -rows.shape[-1] :]
        return torch.einsum("...bq,bqn->...bn", rows, pool)


def _attention(reading: _Reading) -> Tensor:
    per_layer = [reading.probabilities[name].mean(1) for name in reading.layers]  # each [B, T-1, Q]
    slots = [
        torch.stack([torch.einsum("bt,btq->bq", reading.select(slot), rows) for rows in per_layer])
        for slot in range(reading.slots)
    ]
    return reading.to_patches(torch.stack(slots, dim=1)).permute(2, 0, 1, 3)  # [L, M, B, n] -> [B, L, M, n]


def _gradcam(reading: _Reading) -> Tensor:
    attention = [reading.probabilities[name] for name in reading.layers]  # each [B, H, T-1, Q]
    slots = []
    for slot, gradients in enumerate(reading.gradients(attention)):
        weights = reading.select(slot)
        weighted = [(a * g.relu()).mean(1) for a, g in zip(attention, gradients, strict=True)]
        slots.append(torch.stack([torch.einsum("bt,btq->bq", weights, rows) for rows in weighted]))
    return reading.to_patches(torch.stack(slots, dim=1)).permute(2, 0, 1, 3)


def _gradcam_pooler(reading: _Reading) -> Tensor:
    attention = reading.probabilities["visual.attn_pool"]  # [B, H, Q, 1+N]
    slots = [(attention * gradient.relu()).mean(1).sum(1) for (gradient,) in reading.gradients([attention])]
    return torch.stack(slots, dim=1)[:, None]


def _relevance(reading: _Reading) -> Tensor:
    x = reading.patch_tokens
    slots = [(gradient * x).sum(-1).relu() for (gradient,) in reading.gradients([x])]
    return torch.stack(slots, dim=1)[:, None]


_KINDS: dict[str, Callable[[_Reading], Tensor]] = {
    "attention": _attention,
    "gradcam": _gradcam,
    "gradcam_pooler": _gradcam_pooler,
    "relevance": _relevance,
}


def _normalised(mass: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Drop the CLS column of [B, L, M, 1+N or N] and normalise; returns maps [B, L, M, gh, gw] and kept [B, L, M]."""
    patches = mass[..., -grid[0] * grid[1] :]
    total, on_patches = mass.sum(-1), patches.sum(-1)
    maps = torch.where(on_patches[..., None] > 0, patches / on_patches.clamp_min(1e-30)[..., None], 0.0)
    kept = torch.where(total > 0, on_patches / total.clamp_min(1e-30), 0.0)
    return maps.view(*maps.shape[:-1], *grid), kept

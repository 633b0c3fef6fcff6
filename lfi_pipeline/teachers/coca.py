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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from lfi_pipeline.errors import ConfigError, UnknownNameError
from lfi_pipeline.targets import LayerSpec, TeacherSpec
from lfi_pipeline.teachers.attention_probe import outputs_of, probe_attention
from lfi_pipeline.teachers.map_kinds import KINDS, POOLER, Reading, Request
from lfi_pipeline.teachers.words import EncodedText, Word, encode_text

ROWS = ("emitting", "reading")


def require_row(row: str, kind: str) -> None:
    """Raise UnknownNameError or ConfigError, as `CocaTeacher.interaction_maps`, unless `kind` has `row`."""
    if row not in ROWS:
        raise UnknownNameError("row", row, ROWS)
    if row == "reading" and kind != "attention":
        raise ConfigError(f"row 'reading' exists for the kind 'attention' only, got kind {kind!r}.")


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
        return tuple(name for name, kind in KINDS.items() if self.pooler is not None or not kind.pooler)

    def layers(self, kind: str, count: int) -> tuple[LayerSpec, ...]:
        """Return the layers a map of `kind` is taken at: `count` decoder layers evenly spaced, or the only one.

        Raises:
            UnknownNameError: `kind` is not one of `kinds`.
            ConfigError: `count` is not between 1 and the number of decoder layers.
        """
        if kind not in self.kinds:
            raise UnknownNameError("map kind", kind, self.kinds)
        if KINDS[kind].place:
            return (LayerSpec(name=KINDS[kind].place, depth=1.0),)
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
        require_row(row, kind)
        visual, decoder = self.model.visual, self.model.text_decoder
        norms = [block.ln_1_kv for block in decoder.cross_attn] if self.pooler is None else [self.pooler.ln_k]
        ids = self._pad(texts)
        with torch.no_grad():
            tokens = visual.transformer(visual._embeds(images))
            pooled, _ = visual._pool(tokens)
            embedding = (pooled @ visual.proj if visual.proj is not None else pooled).flatten(1)
            _, token_embeddings = self.model.text(ids)
        request = Request(ids=ids, words=words, row=row, layers=[layer.name for layer in layers])

        def read(x: Tensor) -> Reading:
            with outputs_of(norms) as entering:
                logits = decoder(visual._pool(x)[1], token_embeddings[:, :-1]).float()
            surprise = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            return Reading(request, entering, -surprise, dict(probabilities))

        with torch.set_grad_enabled(KINDS[kind].gradient), probe_attention(self._probes(kind, layers)) as probabilities:
            mass = KINDS[kind].make(read, tokens)
        maps, kept = _normalised(mass.detach().float(), self.grid)
        return InteractionMaps(maps, kept, nn.functional.normalize(embedding.float(), dim=-1))

    def _probes(self, kind: str, layers: Sequence[LayerSpec]) -> dict[str, nn.MultiheadAttention]:
        """Attention layers whose probabilities `kind` is made of; the others keep their fused kernels."""
        if not KINDS[kind].attention:
            return {}
        names = [] if KINDS[kind].place else [layer.name for layer in layers]
        probes = {name: self.model.get_submodule(name).attn for name in names}
        return probes | ({POOLER: self.pooler.attn} if self.pooler is not None else {})

    def _pad(self, texts: Sequence[EncodedText]) -> Tensor:
        """Token ids [B, T], padded to the batch's longest caption: rows depend on earlier tokens only."""
        longest = max(len(text.ids) for text in texts)
        ids = torch.full((len(texts), longest), self.model.pad_id, dtype=torch.long)
        for i, text in enumerate(texts):
            ids[i, : len(text.ids)] = torch.tensor(text.ids)
        return ids.to(self.device)


def _normalised(mass: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Drop the CLS column of [B, L, M, 1+N or N] and normalise; returns maps [B, L, M, gh, gw] and kept [B, L, M]."""
    patches = mass[..., -grid[0] * grid[1] :]
    total, on_patches = mass.sum(-1), patches.sum(-1)
    maps = torch.where(on_patches[..., None] > 0, patches / on_patches.clamp_min(1e-30)[..., None], 0.0)
    kept = torch.where(total > 0, on_patches / total.clamp_min(1e-30), 0.0)
    return maps.view(*maps.shape[:-1], *grid), kept

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
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from lfi_pipeline.core.device import autocast
from lfi_pipeline.core.errors import UnknownNameError
from lfi_pipeline.targets import LayerSpec, TeacherSpec
from lfi_pipeline.teachers.attention import outputs_of, probe_attention
from lfi_pipeline.teachers.caption_reader import CaptionReader, Request
from lfi_pipeline.teachers.captioner import write_captions
from lfi_pipeline.teachers.config import require_row
from lfi_pipeline.teachers.kinds import KINDS, POOLER, Reading, coca_kinds
from lfi_pipeline.teachers.teacher import InteractionMaps, choose_layers, logit_scale_of, normalised, require_images
from lfi_pipeline.teachers.text import EncodedText, Word, encode_text, pad_id

SEEN_NUMBERS = 1 << 26  # keys and values of all decoder layers that are held at a time


class CocaTeacher:
    """A CoCa model of open_clip with its tokenizer; a `Teacher`.

    Args:
        model: `open_clip.CoCa`; put in eval mode, parameters frozen.
        tokenizer: open_clip's tokenizer with the model's vocabulary.
        identity: name, tag, weights digest, family and precision, recorded in the spec.
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
        self.interpolation: str = pixels.get("interpolation", "bicubic")
        self.mean: tuple[float, float, float] = tuple(pixels.get("mean", open_clip.OPENAI_DATASET_MEAN))
        self.std: tuple[float, float, float] = tuple(pixels.get("std", open_clip.OPENAI_DATASET_STD))
        self.embedding_dim = int(visual.output_dim)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def precision(self) -> str:
        """What trunk and text tower compute in; pooler, decoder and maps are fp32."""
        return self.identity.precision

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of map this teacher can give, the default first."""
        return coca_kinds(pooler=self.pooler is not None)

    @property
    def default_kind(self) -> str:
        """The kind that points best."""
        return self.kinds[0]

    def layers(self, kind: str, chosen: int | Sequence[int] | None) -> tuple[LayerSpec, ...]:
        """Return the decoder layers a map of `kind` is taken at, or the only place it has.

        Args:
            kind: one of `kinds`.
            chosen: a number of layers, evenly spaced; or their indices from 0, ascending.

        Raises:
            UnknownNameError: `kind` is not one of `kinds`.
            ConfigError: more layers than the decoder has, or indices of none.
        """
        if kind not in self.kinds:
            raise UnknownNameError("map kind", kind, self.kinds)
        if KINDS[kind].place:
            return (LayerSpec(name=KINDS[kind].place, depth=1.0),)
        total = len(self.model.text_decoder.cross_attn)
        return choose_layers(self.identity.name, "text_decoder.cross_attn", total, chosen)

    def encode_text(self, text: str, phrases: Sequence[str] = ()) -> EncodedText:
        """Tokenise `text` and find its content words; where `phrases` are given, their occurrences instead."""
        return encode_text(self.tokenizer, text, phrases)

    @property
    def logit_scale(self) -> float:
        """What the cosine of an image and a text embedding is multiplied by to give a logit."""
        return logit_scale_of(self.model)

    def embed_words(self, words: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the text embedding of each word on its own, fp32 unit vectors [V, E]."""
        return self.embed_texts(words, batch_size)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the text embedding of each text, fp32 unit vectors [N, E]."""
        parts = []
        for i in range(0, len(texts), batch_size):
            ids = self.tokenizer(list(texts[i : i + batch_size])).to(self.device)
            with autocast(self.device, self.precision):
                found = self.model.encode_text(ids, normalize=False)
            parts.append(nn.functional.normalize(found.float(), dim=-1))
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
        image_of: Sequence[int] | None = None,
    ) -> InteractionMaps:
        """Return the maps of `words[c]` (None leaves a row empty) while the teacher reads `texts[c]`.

        Args:
            images: normalised, [B, 3, H, W] at `image_size`, on `device`.
            texts: C captions.
            words: for each caption the words that get a row, at most M.
            kind: one of `kinds`.
            layers: as `layers(kind, ...)` returned them.
            row: `emitting` or (for `attention` only) `reading`.
            image_of: for each caption its image, so that captions of one image share its pass through the trunk; by
                default caption c is read over image c.

        Raises:
            UnknownNameError: unknown kind or row.
            ConfigError: `reading` rows of a gradient kind (the gradient of a word's logit at a later row is zero), or
                captions that do not fit the images.
        """
        if kind not in self.kinds:
            raise UnknownNameError("map kind", kind, self.kinds)
        require_row(row, kind)
        chosen = require_images(len(texts), len(images), image_of)
        tokens, embedding = self._look(images)
        if image_of is not None:
            tokens = tokens[chosen]
        slots, parts = max(1, *map(len, words), 1), []
        for first in range(0, len(texts), self._captions_at_once()):
            last = first + self._captions_at_once()
            found = self._mass(tokens[first:last], texts[first:last], words[first:last], kind, layers, row)
            parts.append(nn.functional.pad(found, (0, 0, 0, slots - found.shape[2])))
        return InteractionMaps(*normalised(torch.cat(parts), self.grid), embedding)

    def _mass(
        self,
        tokens: Tensor,
        texts: Sequence[EncodedText],
        words: Sequence[Sequence[Word | None]],
        kind: str,
        layers: Sequence[LayerSpec],
        row: str,
    ) -> Tensor:
        """Mass [C, L, M, 1+N or N] of some captions, each beside its image's tokens."""
        visual, ids = self.model.visual, self._pad(texts)
        request = Request(ids=ids, words=words, row=row, layers=[layer.name for layer in layers])
        reader = CaptionReader(self.model.text_decoder, request, self._text(ids, request.length))
        probes = {POOLER: self.pooler.attn} if self.pooler is not None else {}

        def read(x: Tensor) -> Reading:
            with outputs_of([] if self.pooler is None else [self.pooler.ln_k]) as entering:
                seen = reader.see(visual._pool(x)[1])
            return Reading(reader, seen, entering[0] if entering else None, attention.get(POOLER))

        with torch.set_grad_enabled(KINDS[kind].gradient), probe_attention(probes) as attention:
            return KINDS[kind].make(read, tokens).detach().float()

    def _captions_at_once(self) -> int:
        """As many captions as have `SEEN_NUMBERS` keys and values of the decoder among them."""
        decoder = self.model.text_decoder
        tokens = self.grid[0] * self.grid[1] if self.pooler is None else len(self.pooler.query)
        return int(max(1, SEEN_NUMBERS // (2 * len(decoder.cross_attn) * tokens * decoder.width)))

    @property
    def can_generate(self) -> bool:
        """Whether it can caption an image: every CoCa can."""
        return True

    def generate(self, images: Tensor) -> list[str]:
        """Return a caption of each image [B, 3, H, W], by beam search: the same for the same image."""
        visual = self.model.visual
        with torch.no_grad(), autocast(self.device, self.precision):
            tokens = visual.transformer(visual._embeds(images))
        return write_captions(self.model, self.tokenizer, tokens.float())

    @torch.no_grad()
    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk's tokens [B, 1+N, D] and the image embeddings [B, E]."""
        visual = self.model.visual
        with autocast(self.device, self.precision):
            tokens = visual.transformer(visual._embeds(images))
        tokens = tokens.float()
        pooled = visual._pool(tokens)[0]
        embedding = (pooled @ visual.proj if visual.proj is not None else pooled).flatten(1)
        return tokens, nn.functional.normalize(embedding, dim=-1)

    @torch.no_grad()
    def _text(self, ids: Tensor, length: int) -> Tensor:
        """The text tower's embeddings [C, length, D] of the first tokens; a causal tower need not read the others."""
        if isinstance(self.model.text, open_clip.transformer.TextTransformer) and self.model.text.attn_mask is not None:
            ids = ids[:, :length]
        with autocast(self.device, self.precision):
            _, embeddings = self.model.text(ids)
        found: Tensor = embeddings[:, :length].float()
        return found

    def _pad(self, texts: Sequence[EncodedText]) -> Tensor:
        """Token ids [C, T], padded to the batch's longest caption: rows depend on earlier tokens only."""
        longest = max(len(text.ids) for text in texts)
        ids = torch.full((len(texts), longest), pad_id(self.model), dtype=torch.long)
        for i, text in enumerate(texts):
            ids[i, : len(text.ids)] = torch.tensor(text.ids)
        return ids.to(self.device)

"""The CoCa family of open_clip as teachers: caption and image in, interaction maps out.

The decoder reads the caption while looking at the image through its cross-attention. Three facts of open_clip's
`coca_model.py` and `transformer.py` shape this file:

- The decoder does not see patches but the outputs of an attentional pooler, so a decoder map over the Q pooler outputs
  is composed with the pooler's own attention over CLS and N patches: `A = A_decoder [T, Q] @ A_pool [Q, 1+N]`. The
  first pooler query makes the image embedding and is not shown to the decoder: its row is left out. Configs without a
  pooler (coca_base) let the decoder see the patches, and the composition is the identity.
- It is a causal language model: the step that emits the token at position p is row p-1 (`emitting`); row p is the step
  after it was read (`reading`).
- No kind of map needs gradients inside the vision trunk: it runs once, without autograd. `contrastive` needs no decoder
  either, and reads no caption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from lfi_pipeline.core.runtime import autocast
from lfi_pipeline.targets import LayerSpec, MapSpec, TeacherSpec
from lfi_pipeline.teachers.attention import compiled_function, graphs_pay, outputs_of, probe_attention
from lfi_pipeline.teachers.caption_reader import CaptionReader, Request
from lfi_pipeline.teachers.captioner import write_captions
from lfi_pipeline.teachers.config import require_row
from lfi_pipeline.teachers.contrastive import (
    CONTRASTIVE,
    STEPS,
    artefact_patches,
    contrastive_masses,
    first_query,
    without_artefacts,
)
from lfi_pipeline.teachers.kinds import BLOCKS, KINDS, POOLER, Reading, coca_kinds
from lfi_pipeline.teachers.settings import COMMON_WORDS, WORD_TEMPLATE, AskedWords, on_device, settings_of_kind
from lfi_pipeline.teachers.teacher import (
    BaseTeacher,
    InteractionMaps,
    choose_layers,
    logit_scale_of,
    normalised,
    require_images,
    supported,
)
from lfi_pipeline.teachers.text import EncodedText, Word, pad_id

SEEN_NUMBERS = 1 << 26  # keys and values of all decoder layers that are held at a time


@dataclass(frozen=True, slots=True)
class _Compiled:
    """`contrastive_masses` compiled for as many captions and words; fewer words are padded."""

    masses: Callable[..., Tensor]
    captions: int
    words: int


class CocaTeacher(BaseTeacher):
    """A CoCa model of open_clip with its tokenizer; a `Teacher`.

    Args:
        model: `open_clip.CoCa`; put in eval mode, parameters frozen.
        tokenizer: open_clip's tokenizer with the model's vocabulary.
        identity: name, tag, weights digest, family and precision, recorded in the spec.
        word_template: what a word is put into before it is embedded.
    """

    compares = True
    _compiled: _Compiled | None = None

    def __init__(self, model: Any, tokenizer: Any, identity: TeacherSpec, word_template: str = WORD_TEMPLATE) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.identity, self.word_template = tokenizer, identity, word_template
        visual = model.visual
        self.pooler = visual.attn_pool
        self.image_size: tuple[int, int] = tuple(visual.image_size)
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        pixels = getattr(visual, "preprocess_cfg", {})  # set where open_clip built the model
        self.interpolation: str = pixels.get("interpolation", "bicubic")
        self.mean: tuple[float, float, float] = tuple(pixels.get("mean", open_clip.OPENAI_DATASET_MEAN))
        self.std: tuple[float, float, float] = tuple(pixels.get("std", open_clip.OPENAI_DATASET_STD))
        self.embedding_dim = int(visual.output_dim)
        cascade = self.pooler is not None and first_query(visual) is None
        self._kinds = coca_kinds(pooler="cascade" if cascade else self.pooler is not None)
        self._asked = AskedWords(self.embed_texts)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of the vision trunk."""
        return list(self.model.visual.transformer.resblocks)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of map this teacher can give, the default first."""
        return self._kinds

    @property
    def default_kind(self) -> str:
        """The kind that points best."""
        return self.kinds[0]

    def layers(self, kind: str, chosen: int | Sequence[int] | None) -> tuple[LayerSpec, ...]:
        """Return the decoder layers, or of `contrastive` the trunk's blocks, a map is taken at, or its only place.

        Args:
            kind: one of `kinds`.
            chosen: a number of layers, evenly spaced; or their indices from 0, ascending.

        Raises:
            UnknownNameError: `kind` is not one of `kinds`.
            ConfigError: more layers than there are, or indices of none.
        """
        self._require_kind(kind)
        if kind == CONTRASTIVE:
            return choose_layers(self.identity.name, BLOCKS, len(self.model.visual.transformer.resblocks), chosen)
        if KINDS[kind].place:
            return (LayerSpec(name=KINDS[kind].place, depth=1.0),)
        total = len(self.model.text_decoder.cross_attn)
        return choose_layers(self.identity.name, "text_decoder.cross_attn", total, chosen)

    @cached_property
    def logit_scale(self) -> float:
        """What the cosine of an image and a text embedding is multiplied by to give a logit."""
        return logit_scale_of(self.model)

    def map_settings(
        self, kind: str, *, centre: Sequence[str] = COMMON_WORDS, steps: int = 0, artefacts: str = "fill"
    ) -> MapSpec:
        """Return how a map of `kind` is made; see `Teacher`."""
        self._require_kind(kind)
        return settings_of_kind(
            kind,
            own_steps=KINDS[kind].steps,
            steps=steps,
            word_template=self.word_template,
            centre=centre if KINDS[kind].contrastive else (),
            artefacts=artefacts,
            support=KINDS[kind].support,
        )

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the text embedding of each text, fp32 unit vectors [N, E]."""
        parts = []
        for i in range(0, len(texts), batch_size):
            ids = self.tokenizer(list(texts[i : i + batch_size])).to(self.device)
            with autocast(self.device, self.precision):
                embeddings = self.model.encode_text(ids, normalize=False)
            parts.append(nn.functional.normalize(embeddings.float(), dim=-1))
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
        settings: MapSpec | None = None,
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
            settings: as `map_settings(kind, ...)` returned them; by default `map_settings(kind)`.

        Raises:
            UnknownNameError: unknown kind or row.
            ConfigError: `reading` rows of a gradient kind (the gradient of a word's logit at a later row is zero), or
                captions that do not fit the images.
        """
        self._require_kind(kind)
        require_row(row, kind)
        chosen = require_images(len(texts), len(images), image_of)
        settings = settings or self.map_settings(kind)
        blocks = [int(layer.name.rpartition(".")[2]) for layer in layers] if kind == CONTRASTIVE else []
        tokens, embedding, after = self._look(images, blocks)
        looked_at = (after or [tokens]) if settings.artefacts == "fill" else []
        artefacts = [artefact_patches(each, self.grid[0] * self.grid[1]) for each in looked_at]
        if chosen != list(range(len(images))):
            index = on_device(torch.tensor(chosen), self.device)
            tokens, after = tokens[index], [each[index] for each in after]
            artefacts = [each[index] for each in artefacts]
        if kind == CONTRASTIVE:
            mass = self._contrast(after, words, settings, settings.steps)
        else:
            mass = self._read(tokens, texts, words, kind, layers, row, settings.steps)
            if KINDS[kind].contrastive:
                contrast = self._contrast([tokens], words, settings, STEPS)
                both = mass * contrast
                # where the two share no place, the image embedding's word is taken: a word keeps its map
                mass = torch.where(both.sum(-1, keepdim=True) > 0, both, contrast)
        if artefacts:
            mass = without_artefacts(mass, torch.stack(artefacts, dim=1).expand(-1, mass.shape[1], -1), self.grid)
        maps, kept = normalised(mass, self.grid)
        return InteractionMaps(supported(maps, settings.support), kept, embedding)

    def _contrast(
        self, layers: Sequence[Tensor], words: Sequence[Sequence[Word | None]], settings: MapSpec, steps: int
    ) -> Tensor:
        """Mass [C, L, M, 1+N] of `contrastive` over the tokens of each layer [C, 1+N, D]."""
        directions = self._asked.directions(words, settings, self.device)
        slots, captions, _ = directions.shape
        if self._compiled is None or captions != self._compiled.captions or slots > self._compiled.words:
            return contrastive_masses(self.model.visual, layers, directions, steps)
        # words that nobody asked for have no mass, and the same number of them always needs no other program
        directions = nn.functional.pad(directions, (0, 0, 0, 0, 0, self._compiled.words - slots))
        return self._compiled.masses(self.model.visual, layers, directions, steps)[:, :, :slots]

    @contextmanager
    def compiled(self, batch_size: int, words: int, **options: Any) -> Iterator[None]:
        """Have torch compile the blocks of the vision trunk, and `contrastive` from the pooler on."""
        masses = compiled_function(contrastive_masses, graphs=graphs_pay(self.blocks), **options)
        with super().compiled(batch_size, words, **options):
            self._compiled = _Compiled(masses, batch_size, words)
            try:
                yield
            finally:
                self._compiled = None

    def _read(
        self,
        tokens: Tensor,
        texts: Sequence[EncodedText],
        words: Sequence[Sequence[Word | None]],
        kind: str,
        layers: Sequence[LayerSpec],
        row: str,
        steps: int,
    ) -> Tensor:
        """Mass [C, L, M, 1+N or N] of a kind that reads captions, some of them at a time."""
        slots, parts = max(1, *map(len, words), 1), []
        for first in range(0, len(texts), self._captions_at_once()):
            last = first + self._captions_at_once()
            mass = self._mass(tokens[first:last], texts[first:last], words[first:last], kind, layers, row, steps)
            parts.append(nn.functional.pad(mass, (0, 0, 0, slots - mass.shape[2])))
        return torch.cat(parts)

    def _mass(
        self,
        tokens: Tensor,
        texts: Sequence[EncodedText],
        words: Sequence[Sequence[Word | None]],
        kind: str,
        layers: Sequence[LayerSpec],
        row: str,
        steps: int,
    ) -> Tensor:
        """Mass [C, L, M, 1+N or N] of some captions, each beside its image's tokens."""
        make = KINDS[kind].make
        assert make is not None
        visual, ids = self.model.visual, self._pad(texts)
        request = Request(ids=ids, words=words, row=row, layers=[layer.name for layer in layers])
        reader = CaptionReader(self.model.text_decoder, request, self._text(ids, request.length))
        probes = {POOLER: self.pooler.attn} if self.pooler is not None else {}

        def read(x: Tensor) -> Reading:
            with outputs_of([] if self.pooler is None else [self.pooler.ln_k]) as entering:
                seen = reader.see(visual._pool(x)[1])
            return Reading(reader, seen, entering[0] if entering else None, attention.get(POOLER))

        with torch.set_grad_enabled(KINDS[kind].gradient), probe_attention(probes) as attention:
            return make(read, tokens, steps).detach().float()

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
        return write_captions(self.model, self.tokenizer, self._look(images)[0])

    @torch.no_grad()
    def _look(self, images: Tensor, blocks: Sequence[int] = ()) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The trunk's tokens [B, 1+N, D], the image embeddings [B, E], and the tokens after each of `blocks`."""
        visual = self.model.visual
        layers = [visual.transformer.resblocks[block] for block in blocks]
        with autocast(self.device, self.precision), outputs_of(layers) as after:
            tokens = visual.transformer(visual._embeds(images))
        tokens = tokens.float()
        pooled = visual._pool(tokens)[0]
        embedding = (pooled @ visual.proj if visual.proj is not None else pooled).flatten(1)
        return tokens, nn.functional.normalize(embedding, dim=-1), [each.float() for each in after]

    @torch.no_grad()
    def _text(self, ids: Tensor, length: int) -> Tensor:
        """The text tower's embeddings [C, length, D] of the first tokens; a causal tower need not read the others."""
        if isinstance(self.model.text, open_clip.transformer.TextTransformer) and self.model.text.attn_mask is not None:
            ids = ids[:, :length]
        with autocast(self.device, self.precision):
            _, embeddings = self.model.text(ids)
        leading: Tensor = embeddings[:, :length].float()
        return leading

    def _pad(self, texts: Sequence[EncodedText]) -> Tensor:
        """Token ids [C, T], padded to the batch's longest caption: rows depend on earlier tokens only."""
        longest = max(len(text.ids) for text in texts)
        ids = torch.full((len(texts), longest), pad_id(self.model), dtype=torch.long)
        for i, text in enumerate(texts):
            ids[i, : len(text.ids)] = torch.tensor(text.ids)
        return on_device(ids, self.device)

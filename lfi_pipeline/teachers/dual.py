"""Dual encoders of open_clip (CLIP, SigLIP, EVA) as teachers: words and image in, interaction maps out.

No cross-attention exists and no caption is read: a word is embedded on its own, in a template, and its map is where
the image is like it. The words of a caption are those the model's own tokenizer can hold.

A word is asked for by d, its text embedding less the mean of a vocabulary's: without that, cosines of patches and words
point at the background (CLIP Surgery, Li et al., arXiv 2304.05653; measured in README of this package). With t the
model's temperature, z the image's embedding of unit length, and s_w = t <z, d>:

- `contrastive`, the default: `relevance` times, where a CLS token or a pool's query looks at patches, that look's
  A * relu(d s_w / dA), head mean (equation 5 of Chefer et al. below, the last look alone).
- `value`: softmax over patches of t <v_n, d>, v_n the patch's value in the last block's attention, projected and
  embedded as if it were all that is read, without residual and MLP (MaskCLIP: Zhou, Loy, Dai, ECCV 2022, arXiv
  2112.01071, section 3.2). For open_clip's own towers with a CLS token; it differentiates nothing.
- `similarity`: softmax over patches of t <p_n, d>, p_n the patch token after a layer, embedded as the model would
  were it all that is pooled (`Trunk.embed_alone`).
- `gradcam`: A * relu(d s_w / dA) of a layer's attention, head mean (Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679,
  equation 5, one layer at a time), at the row of what is pooled: of the CLS token; of the pool's query, which
  is then the only layer; or summed over the patches that are averaged.
- `relevance`: relu(sum_d g x) at the tokens x that enter the last pooling step, normalised, g = d s_w / dx: of the
  last block's attention with a CLS token, of the pool, or of the average.

Which kinds there are and how they are put together is this project's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError, TeacherError, UnknownNameError
from lfi_pipeline.core.runtime import autocast
from lfi_pipeline.targets import LayerSpec, MapSpec, TeacherSpec
from lfi_pipeline.teachers.attention import VALUE, merge, outputs_of, project
from lfi_pipeline.teachers.config import ROWS
from lfi_pipeline.teachers.contrastive import artefact_patches, without_artefacts
from lfi_pipeline.teachers.dual_trunks import POOL, Trunk, trunk_of
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
from lfi_pipeline.teachers.text import EncodedText, Word

# Numbers that the gradients of a group of words may hold in one place of the trunk (words * B * T * 4 D)
GROUP_NUMBERS = 1 << 25


@dataclass(frozen=True, slots=True)
class Question:
    """What maps are asked for: which words over which images, at which layers.

    Attributes:
        images: [B, 3, H, W].
        words: directions [S, B, E]: S words for each image, zero where there is none.
        temperature: t.
        layers: names of the layers asked for.
        precision: of the trunk, up to where it is differentiated.
    """

    images: Tensor
    words: Tensor
    temperature: float
    layers: Sequence[str]
    precision: str


Found = tuple[Tensor, Tensor]  # mass [B, L, S, P+N or N]; image embeddings [B, E] of unit length


def _similarity(trunk: Trunk, question: Question) -> Found:
    blocks = [trunk.blocks[int(name.rpartition(".")[2])] for name in question.layers]
    with torch.no_grad():
        with autocast(question.images.device, question.precision), outputs_of(blocks) as tokens:
            embedding = F.normalize(trunk.visual(question.images).float(), dim=-1)
        layers = [_softmax_of_cosines(trunk, question, each[:, -trunk.patches :]) for each in tokens]
    return torch.stack(layers, dim=1), embedding


def _gradcam(trunk: Trunk, question: Question) -> Found:
    device = question.images.device
    with torch.enable_grad(), trunk.probed(list(question.layers), device) as seen:
        with autocast(device, question.precision):
            embedding = F.normalize(trunk.visual(question.images).float(), dim=-1)
        attention = [seen[name] for name in question.layers]  # each [B, H, T, S]
    parts = []
    for gradients in _gradients(trunk, question, embedding, attention):
        weighted = [(a * g.relu()).mean(2) for a, g in zip(attention, gradients, strict=True)]  # [s, B, T, S]
        rows = slice(-trunk.patches, None) if trunk.pooling == "average" else slice(0, 1)
        parts.append(torch.stack([each[:, :, rows].sum(2) for each in weighted], dim=1))
    return torch.cat(parts).permute(2, 1, 0, 3).detach(), embedding.detach()


def _relevance(trunk: Trunk, question: Question) -> Found:
    device = question.images.device
    with torch.enable_grad(), trunk.entering(device) as caught:
        with autocast(device, question.precision):
            embedding = F.normalize(trunk.visual(question.images).float(), dim=-1)
        (x,) = caught
    parts = [torch.einsum("sbtd,btd->bst", g, x.detach()) for (g,) in _gradients(trunk, question, embedding, [x])]
    return torch.cat(parts, dim=1).relu()[:, None], embedding.detach()


def _contrastive(trunk: Trunk, question: Question) -> Found:
    device, precise = question.images.device, question.images.device
    place = POOL if trunk.pooling == "attention" else f"{trunk.prefix}.{len(trunk.blocks) - 1}"
    with torch.enable_grad(), ExitStack() as stack:
        caught = stack.enter_context(trunk.entering(precise))
        seen = {} if trunk.pooling == "average" else stack.enter_context(trunk.probed([place], precise))
        with autocast(device, question.precision):
            embedding = F.normalize(trunk.visual(question.images).float(), dim=-1)
        places = [caught[0], *seen.values()]
    parts = []
    for x, *attention in _gradients(trunk, question, embedding, places):
        mass = torch.einsum("sbtd,btd->sbt", x, places[0].detach()).relu()
        for gradient in attention:  # one, or none where patches are averaged
            mass = mass * (places[1].detach() * gradient.relu())[:, :, :, 0].mean(2)
        parts.append(mass)
    return torch.cat(parts).transpose(0, 1)[:, None], embedding.detach()


def _value(trunk: Trunk, question: Question) -> Found:
    last = trunk.blocks[-1]
    with torch.no_grad():
        with trunk.entering(question.images.device) as caught, autocast(question.images.device, question.precision):
            embedding = F.normalize(trunk.visual(question.images).float(), dim=-1)
        x = caught[0].detach()[:, -trunk.patches :]
        read = last.ls_1(merge(last.attn, project(last.attn, x, VALUE)))
        return _softmax_of_cosines(trunk, question, read)[:, None], embedding


def _softmax_of_cosines(trunk: Trunk, question: Question, tokens: Tensor) -> Tensor:
    """Mass [B, S, N] of patch tokens [B, N, D], each embedded alone; zero for a word that is not asked for."""
    patches = F.normalize(trunk.embed_alone(tokens.float()), dim=-1)  # [B, N, E]
    scores = question.temperature * torch.einsum("bne,sbe->bsn", patches, question.words)
    return scores.softmax(-1) * question.words.any(-1).T[..., None]


def _gradients(
    trunk: Trunk, question: Question, embedding: Tensor, places: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """Gradients of s_w at `places`, [s, B, ...], for groups of words in one vector-Jacobian product each."""
    wide = 4 * trunk.patches * embedding.shape[-1] * len(embedding)
    group = max(1, GROUP_NUMBERS // wide)
    for first in range(0, len(question.words), group):
        words = question.words[first : first + group]
        yield torch.autograd.grad(  # through fused attention too, of which `torch.vmap` has none
            embedding, places, question.temperature * words, retain_graph=True, is_grads_batched=True
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DualKind:
    """One way to make maps.

    Attributes:
        make: from a tower and a question to mass and image embeddings.
        layered: it has a map for each block (`gradcam` of an attention pool has only that of the pool).
        support: as in `MapSpec`.
        own_blocks: it is written for open_clip's own blocks and a CLS token.
    """

    make: Callable[[Trunk, Question], Found]
    layered: bool = False
    support: float = 0.0
    own_blocks: bool = False


DUAL_KINDS: dict[str, DualKind] = {
    "contrastive": DualKind(make=_contrastive, support=1.0),
    "value": DualKind(make=_value, own_blocks=True),
    "similarity": DualKind(make=_similarity, layered=True),
    "gradcam": DualKind(make=_gradcam, layered=True),
    "relevance": DualKind(make=_relevance),
}


def dual_kinds(*, own_blocks: bool) -> tuple[str, ...]:
    """Return the kinds a dual encoder can give, the default first; `own_blocks` of open_clip with a CLS token."""
    return tuple(name for name, kind in DUAL_KINDS.items() if own_blocks or not kind.own_blocks)


class DualTeacher(BaseTeacher):
    """A dual encoder of open_clip with its tokenizer; a `Teacher`.

    Args:
        model: `open_clip.CLIP` or `CustomTextCLIP`; put in eval mode, parameters frozen.
        tokenizer: open_clip's tokenizer for it.
        identity: name, tag, weights digest, family and precision, recorded in the spec.
        word_template: what a word is put into before it is embedded.

    Raises:
        TeacherError: its vision tower is not a vision transformer.
    """

    default_kind = "contrastive"
    can_generate = False
    compares = True

    def __init__(self, model: Any, tokenizer: Any, identity: TeacherSpec, word_template: str = WORD_TEMPLATE) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.identity, self.word_template = tokenizer, identity, word_template
        self.trunk = trunk_of(model.visual, identity.name)
        self.grid = self.trunk.grid
        self.image_size: tuple[int, int] = tuple(model.visual.image_size)
        pixels = getattr(model.visual, "preprocess_cfg", {})  # set where open_clip built the model
        self.interpolation: str = pixels.get("interpolation", "bicubic")
        self.mean: tuple[float, float, float] = tuple(pixels.get("mean", open_clip.OPENAI_DATASET_MEAN))
        self.std: tuple[float, float, float] = tuple(pixels.get("std", open_clip.OPENAI_DATASET_STD))
        self._asked = AskedWords(self.embed_texts)
        with torch.no_grad():
            token = torch.zeros(1, 1, self.trunk.width, device=self.device)
            self.embedding_dim = int(self.trunk.embed_alone(token).shape[-1])

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of the vision trunk."""
        return list(self.trunk.blocks)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of map this teacher can give."""
        return dual_kinds(own_blocks=self.trunk.own_blocks)

    def layers(self, kind: str, chosen: int | Sequence[int] | None) -> tuple[LayerSpec, ...]:
        """Return the blocks a map of `kind` is taken at, or the only place it has.

        Args:
            kind: one of `kinds`.
            chosen: a number of blocks, evenly spaced; or their indices from 0, ascending; None for 4, of `similarity`
                for the last.

        Raises:
            UnknownNameError: `kind` is not one of `kinds`.
            ConfigError: more blocks than the trunk has, or indices of none.
        """
        self._require_kind(kind)
        if kind == "gradcam" and self.trunk.pooling == "attention":
            return (LayerSpec(name=POOL, depth=1.0),)
        if not DUAL_KINDS[kind].layered:
            return (LayerSpec(name="visual.pooled", depth=1.0),)
        if kind == "similarity" and chosen is None:
            chosen = 1  # tokens of earlier blocks are not yet of the space that texts are embedded in
        return choose_layers(self.identity.name, self.trunk.prefix, len(self.trunk.blocks), chosen)

    def map_settings(
        self, kind: str, *, centre: Sequence[str] = COMMON_WORDS, steps: int = 0, artefacts: str = "fill"
    ) -> MapSpec:
        """Return how a map of `kind` is made; see `Teacher`."""
        self._require_kind(kind)
        template = self.word_template
        return settings_of_kind(
            kind,
            own_steps=0,
            steps=steps,
            word_template=template,
            centre=centre,
            artefacts=artefacts,
            support=DUAL_KINDS[kind].support,
        )

    @cached_property
    def logit_scale(self) -> float:
        """What the cosine of an image and a text embedding is multiplied by to give a logit."""
        return logit_scale_of(self.model)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the text embedding of each text, fp32 unit vectors [N, E]."""
        parts = []
        for i in range(0, len(texts), batch_size):
            ids = self.tokenizer(list(texts[i : i + batch_size]))
            with autocast(self.device, self.precision):
                embeddings = self.model.encode_text(ids.to(self.device))
            parts.append(F.normalize(embeddings.float(), dim=-1))
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
        """Return the maps of `words[c]` (None leaves a row empty) over the image of caption c.

        Args:
            images: normalised, [B, 3, H, W] at `image_size`, on `device`.
            texts: C captions, of which nothing is read but how many they are.
            words: for each caption the words that get a row, at most M.
            kind: one of `kinds`.
            layers: as `layers(kind, ...)` returned them.
            row: `emitting`; nothing is read word by word.
            image_of: for each caption its image; by default caption c is of image c.
            settings: as `map_settings(kind, ...)` returned them; by default `map_settings(kind)`.

        Raises:
            UnknownNameError: unknown kind or row.
            ConfigError: `reading` rows, or captions that do not fit the images.
        """
        self._require_kind(kind)
        if row not in ROWS:
            raise UnknownNameError("row", row, ROWS)
        if row != "emitting":
            raise ConfigError(f"row must be 'emitting' for {self.identity.name}, which reads no caption, got {row!r}.")
        chosen = require_images(len(texts), len(images), image_of)
        settings = settings or self.map_settings(kind)
        nth = [chosen[:c].count(image) for c, image in enumerate(chosen)]  # a caption's place among those of its image
        directions = self._asked.directions(words, settings, self.device)  # [M, C, E]
        slots = len(directions)
        directions_by_image = torch.zeros(max(nth) + 1, slots, len(images), self.embedding_dim, device=self.device)
        image, place = on_device(torch.tensor([chosen, nth]), self.device)
        directions_by_image[place, :, image] = directions.transpose(0, 1)
        question = Question(
            images=images,
            words=directions_by_image.flatten(0, 1),
            temperature=self.logit_scale,
            layers=[layer.name for layer in layers],
            precision=self.precision,
        )
        with outputs_of([self._block_of(layer.name) for layer in layers]) as after:
            mass, embedding = DUAL_KINDS[kind].make(self.trunk, question)
        if settings.artefacts == "fill":
            artefacts = torch.stack([artefact_patches(each, self.trunk.patches) for each in after], dim=1)
            mass = without_artefacts(mass.float(), artefacts, self.grid)
        of_caption = mass.view(*mass.shape[:2], -1, slots, mass.shape[-1])[image, :, place]  # [C, L, M, n]
        maps, kept = normalised(of_caption.float(), self.grid)
        return InteractionMaps(supported(maps, settings.support), kept, embedding)

    def _block_of(self, layer: str) -> nn.Module:
        """The block after which artefacts are looked for: the layer's own, or the last where the layer is no block."""
        prefix, _, number = layer.rpartition(".")
        block: nn.Module = self.trunk.blocks[int(number) if prefix == self.trunk.prefix else -1]
        return block

    def generate(self, images: Tensor) -> list[str]:
        """Refuse: a dual encoder cannot write captions.

        Raises:
            TeacherError: always.
        """
        raise TeacherError(
            f"{self.identity.name} cannot write captions: it is a dual encoder. Give captions or prompts, or a CoCa."
        )

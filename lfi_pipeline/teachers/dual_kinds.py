"""How a dual encoder's maps are made. It reads no caption: each word meets the image on its own.

All are this project's choice, with t the model's temperature, e_w the word's text embedding and z the image's, both of
unit length, and s_w = t <z, e_w>:

- `similarity`: softmax over patches of t cos(p_n, e_w), p_n the patch token after a layer, embedded as the model would
  were it all that is pooled (`Trunk.embed_alone`).
- `gradcam`: A * relu(d s_w / dA) of a layer's attention, head mean (Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679,
  equation 5, one layer at a time), at the row of what is pooled: of the CLS token; of the pool's query, which
  is then the only layer; or summed over the patches that are averaged.
- `relevance`: relu(sum_d g x) at the tokens x that enter the last pooling step, normalised, g = d s_w / dx: of the
  last block's attention with a CLS token, of the pool, or of the average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.teachers.attention_probe import outputs_of
from lfi_pipeline.teachers.dual_trunks import Trunk
from lfi_pipeline.teachers.precision import autocast

# Numbers that the gradients of a group of words may hold in one place of the trunk (words * B * T * 4 D)
GROUP_NUMBERS = 1 << 25


@dataclass(frozen=True, slots=True)
class Question:
    """Words put to images.

    Attributes:
        images: [B, 3, H, W].
        words: unit text embeddings [S, B, E]: S words for each image, zero where there is none.
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


def _similarity(trunk: Trunk, asked: Question) -> Found:
    blocks = [trunk.blocks[int(name.rpartition(".")[2])] for name in asked.layers]
    with torch.no_grad():
        with autocast(asked.images.device, asked.precision), outputs_of(blocks) as tokens:
            embedding = F.normalize(trunk.visual(asked.images).float(), dim=-1)
        layers = []
        for each in tokens:
            patches = F.normalize(trunk.embed_alone(each[:, -trunk.patches :].float()), dim=-1)  # [B, N, E]
            scores = asked.temperature * torch.einsum("bne,sbe->bsn", patches, asked.words)
            layers.append(scores.softmax(-1) * asked.words.any(-1).T[..., None])
    return torch.stack(layers, dim=1), embedding


def _gradcam(trunk: Trunk, asked: Question) -> Found:
    device = asked.images.device
    with torch.enable_grad(), trunk.probed(list(asked.layers), device) as seen:
        with autocast(device, asked.precision):
            embedding = F.normalize(trunk.visual(asked.images).float(), dim=-1)
        attention = [seen[name] for name in asked.layers]  # each [B, H, T, S]
    parts = []
    for gradients in _gradients(trunk, asked, embedding, attention):
        weighted = [(a * g.relu()).mean(2) for a, g in zip(attention, gradients, strict=True)]  # [s, B, T, S]
        rows = slice(-trunk.patches, None) if trunk.pooling == "average" else slice(0, 1)
        parts.append(torch.stack([each[:, :, rows].sum(2) for each in weighted], dim=1))
    return torch.cat(parts).permute(2, 1, 0, 3).detach(), embedding.detach()


def _relevance(trunk: Trunk, asked: Question) -> Found:
    device = asked.images.device
    with torch.enable_grad(), trunk.entering(device) as caught:
        with autocast(device, asked.precision):
            embedding = F.normalize(trunk.visual(asked.images).float(), dim=-1)
        (x,) = caught
    found = [torch.einsum("sbtd,btd->bst", g, x.detach()) for (g,) in _gradients(trunk, asked, embedding, [x])]
    return torch.cat(found, dim=1).relu()[:, None], embedding.detach()


def _gradients(
    trunk: Trunk, asked: Question, embedding: Tensor, places: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """Gradients of s_w at `places`, [s, B, ...], for groups of words in one vector-Jacobian product each."""
    wide = 4 * trunk.patches * embedding.shape[-1] * len(embedding)
    group = max(1, GROUP_NUMBERS // wide)
    for first in range(0, len(asked.words), group):
        words = asked.words[first : first + group]
        yield torch.autograd.grad(
            embedding, places, asked.temperature * words, retain_graph=True, is_grads_batched=True
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DualKind:
    """One way to make maps; `layered` kinds have one for each block (`gradcam` of an attention pool has only that)."""

    make: Callable[[Trunk, Question], Found]
    layered: bool


DUAL_KINDS: dict[str, DualKind] = {
    "similarity": DualKind(make=_similarity, layered=True),
    "gradcam": DualKind(make=_gradcam, layered=True),
    "relevance": DualKind(make=_relevance, layered=False),
}

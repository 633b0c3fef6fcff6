"""The map of a word from the embedding that a CoCa's pooler makes: no decoder, no caption, no backward pass.

The first query of open_clip's attentional pooler reads the trunk's tokens and gives the image embedding z, of unit
length. A word is asked for by a direction d in that space: its text embedding less the mean of a vocabulary's, so that
what all words share does not count. The score <z, d> is differentiated in closed form at the tokens u that enter the
pooler, after its LayerNorm. With g_h the gradient at what head h hands on, G_h = W_v,h^T g_h and
r_h = W_k,h^T q_h / sqrt(d_h):

    a_h   = softmax_t(r_h . u_t)                            the query's attention
    da_ht = G_h . u_t + g_h . b_v,h                          d score / d a_ht
    mass  = relu(sum_d g_td u_td) * mean_h a_ht relu(da_ht)

The first factor is gradient times input; the second the attention weighted by its own gradient (Chefer, Gur, Wolf,
ICCV 2021, arXiv 2103.15679, equation 5). Both are sums over u [T, D] against [M * H, D], so keys, values and gradients
of the tokens are never built and M words cost a small part of one block of the trunk. That a text is asked for by a
difference is as in CLIP Surgery (Li et al., arXiv 2304.05653, section 3.3), which takes the mean map off instead.

With several steps the first factor is an integrated gradient (Sundararajan, Taly, Yan, ICML 2017, arXiv 1703.01365,
equation 3, by the midpoint rule) on the straight path from the image's mean patch token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.teachers.attention import KEY, QUERY, VALUE, outputs_of, projection
from lfi_pipeline.teachers.teacher import Teacher

RATIO, CHANNELS, SHARE = 2.0, 0.01, 0.4
AROUND_NUMBERS = 1 << 26  # neighbours of patches that are held at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtefactCount:
    """Artefacts among the patches of some images after one block.

    Attributes:
        layer: name of the block.
        images: looked at.
        with_artefacts: images that have one.
        share: of all patches.
        largest_norm: of any patch, over the median norm of its image's patches.
    """

    layer: str
    images: int
    with_artefacts: int
    share: float
    largest_norm: float


def artefact_patches(tokens: Tensor, patches: int) -> Tensor:
    """Return which patches are artefacts, bool [..., N].

    Args:
        tokens: [..., T, D] after a block; the last `patches` of them are patches.
        patches: N.
    """
    patch_tokens = tokens[..., -patches:, :].detach().float()
    norms = patch_tokens.norm(dim=-1)
    large: Tensor = norms > RATIO * norms.median(-1, keepdim=True).values
    if _known_empty(large):
        return large
    squares = patch_tokens.square()
    few = max(2, round(CHANNELS * squares.shape[-1]))
    concentrated: Tensor = squares.topk(few).values.sum(-1) > SHARE * squares.sum(-1)
    return large & concentrated


def _known_empty(flags: Tensor) -> bool:
    """Whether nothing is flagged, where that can be known at once: a GPU would have to be waited for."""
    return flags.device.type == "cpu" and not flags.any()


def count_artefacts(tokens: Tensor, patches: int, layer: str) -> ArtefactCount:
    """Count the artefacts among `tokens` [B, T, D] after the block called `layer`."""
    artefacts = artefact_patches(tokens, patches)
    norms = tokens[:, -patches:].float().norm(dim=-1)
    return ArtefactCount(
        layer=layer,
        images=len(tokens),
        with_artefacts=int(artefacts.any(-1).sum()),
        share=float(artefacts.float().mean()),
        largest_norm=float((norms / norms.median(-1, keepdim=True).values).max()),
    )


def merged_counts(counts: Sequence[ArtefactCount]) -> ArtefactCount:
    """Add up what was counted after one block in several batches."""
    images = sum(each.images for each in counts)
    return ArtefactCount(
        layer=counts[0].layer,
        images=images,
        with_artefacts=sum(each.with_artefacts for each in counts),
        share=sum(each.share * each.images for each in counts) / images,
        largest_norm=max(each.largest_norm for each in counts),
    )


@torch.no_grad()
def artefacts_by_block(teacher: Teacher, pixels: Tensor) -> tuple[ArtefactCount, ...]:
    """Count the artefacts after each block of a teacher's trunk, for a report.

    Args:
        teacher: any.
        pixels: normalised images [B, 3, H, W] at its size, on its device.
    """
    with outputs_of(teacher.blocks) as after:
        teacher.encode_image(pixels)
    count = teacher.grid[0] * teacher.grid[1]
    return tuple(count_artefacts(tokens, count, f"block {i}") for i, tokens in enumerate(after))


def without_artefacts(mass: Tensor, artefacts: Tensor, grid: tuple[int, int]) -> Tensor:
    """Give each artefact the median mass of those of its eight neighbours that are none.

    So it is no peak, takes little where its surroundings have little, and leaves no hole in an object.

    Args:
        mass: [B, L, M, P+N], the last N = gh * gw columns on patches; other columns stay.
        artefacts: bool [B, L, N].
        grid: (gh, gw).
    """
    if _known_empty(artefacts):
        return mass
    cleaned = mass.clone()
    images = max(1, AROUND_NUMBERS // (9 * mass[0].numel()))
    for part, flags in zip(torch.split(cleaned, images), torch.split(artefacts, images), strict=True):
        patches, flagged = part[..., -grid[0] * grid[1] :], flags[:, :, None]  # [b, L, M, N], [b, L, 1, N]
        sound = patches.masked_fill(flagged, torch.nan).reshape(-1, 1, *grid)
        around = F.unfold(F.pad(sound, (1, 1, 1, 1), value=torch.nan), 3)  # [b L M, 9, N]; an artefact's own is nan
        median = around.nanmedian(1).values.nan_to_num(nan=0.0).view(patches.shape)
        patches.copy_(torch.where(flagged, median, patches))
    return cleaned


CONTRASTIVE = "contrastive"
STEPS = 4
"""Points better than one or two steps and as well as eight; `README.md` of this package has the numbers."""


@dataclass(frozen=True, slots=True)
class FirstQuery:
    """The attention of one query over tokens that ends in an image embedding.

    Attributes:
        before: the LayerNorms by which tokens [B, T, D] enter, in order.
        after: the LayerNorm of what the query has read; None where there is none.
        readers: r, [H, D].
        layer: the attention.
        projection: from its width C to the embedding's E, [C, E].
    """

    before: tuple[nn.LayerNorm, ...]
    after: nn.LayerNorm | None
    readers: Tensor
    layer: nn.MultiheadAttention
    projection: Tensor

    def enter(self, tokens: Tensor, change: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return u [B, T, D] and, of a change of the tokens, the change of u to first order."""
        for norm in self.before:
            if change is not None:
                change = _norm_change(norm, tokens, change)
            tokens = norm(tokens)
        return tokens, change

    def embed(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From what the heads read, sum_t a_ht u_t [B, H, D], to what `after` takes [B, C], z [B, E] and its length."""
        weight, bias = projection(self.layer, VALUE)
        values = torch.einsum("bhd,hcd->bhc", mixed, weight.view(len(self.readers), -1, weight.shape[1])).flatten(1)
        out = F.linear(values if bias is None else values + bias, self.layer.out_proj.weight, self.layer.out_proj.bias)
        pooled = (out if self.after is None else self.after(out)) @ self.projection
        length = pooled.norm(dim=-1, keepdim=True)
        return out, pooled / length, length

    def values_of(self, mixed: Tensor, directions: Tensor) -> tuple[Tensor, Tensor | float]:
        """G [B, M, H, D] of directions [M, B, E], and what the bias of the values adds [B, M, H, 1]."""
        out, z, length = self.embed(mixed)
        gradient = (directions - z * (directions * z).sum(-1, keepdim=True)) / length @ self.projection.T  # [M, B, C]
        if self.after is not None:
            gradient = _norm_gradient(self.after, out, gradient)
        heads = len(self.readers)
        weight, bias = projection(self.layer, VALUE)
        gradient = gradient @ self.layer.out_proj.weight
        gradient = gradient.view(*gradient.shape[:-1], heads, -1).transpose(0, 1)  # [B, M, H, C/H]
        offset = 0.0 if bias is None else (gradient * bias.view(heads, -1)).sum(-1, keepdim=True)
        return torch.einsum("bmhc,hcd->bmhd", gradient, weight.view(heads, -1, weight.shape[1])), offset


def first_query(visual: Any) -> FirstQuery | None:
    """See the pooler of open_clip's `VisionTransformer` as a `FirstQuery`; None where z is not read by one query."""
    pool, after = visual.attn_pool, visual.ln_post
    if pool is None or visual.proj is None:
        return None
    before: tuple[nn.LayerNorm, ...] = (pool.ln_k,)
    if visual.attn_pool_contrastive is not None:
        if visual.attn_pool_type != "parallel":  # a cascade: its query reads what other queries have read
            return None
        pool, after, before = visual.attn_pool_contrastive, None, (visual.ln_post, visual.attn_pool_contrastive.ln_k)
    elif visual.pool_type != "tok":
        return None
    layer, heads = pool.attn, pool.attn.num_heads
    query = F.linear(pool.ln_q(pool.query[:1]), *projection(layer, QUERY)).view(heads, -1)
    weight, _ = projection(layer, KEY)  # its bias adds the same to every score of a head
    readers = torch.einsum("hc,hcd->hd", query, weight.view(heads, -1, weight.shape[1])) * query.shape[1] ** -0.5
    return FirstQuery(before, after, readers, layer, visual.proj)


@torch.no_grad()
def contrastive_mass(query: FirstQuery, tokens: Tensor, directions: Tensor, steps: int = STEPS) -> Tensor:
    """Return mass [B, M, T] on all tokens, not normalised.

    Args:
        query: of the model.
        tokens: fp32 [B, T, D], CLS first. Those of a shallower block than the last are read as if the trunk ended
            there: what can be found that early.
        directions: fp32 [M, B, E]; zero for a word that is not asked for, whose mass is zero.
        steps: 1 for gradient times input, more for integrated gradients.
    """
    end = _look(query, tokens, directions)
    if steps == 1:
        attribution = _along(query, end, end.entering)
    else:
        change = tokens - tokens[:, 1:].mean(1, keepdim=True)
        attribution = torch.zeros((), device=tokens.device)
        for step in range(steps):
            there = _look(query, tokens - change * (1 - (step + 0.5) / steps), directions, change)
            assert there.change is not None
            attribution = attribution + _along(query, there, there.change)
        attribution = attribution / steps
    cam = (end.attention[:, None] * end.by_attention.relu()).mean(2)
    return attribution.relu() * cam


def contrastive_masses(visual: Any, layers: Sequence[Tensor], directions: Tensor, steps: int) -> Tensor:
    """Return `contrastive_mass` over the tokens of each layer, by the pooler of `visual`: [B, L, M, T]."""
    query = first_query(visual)
    assert query is not None
    return torch.stack([contrastive_mass(query, tokens, directions, steps) for tokens in layers], dim=1)


@dataclass(frozen=True, slots=True)
class _Look:
    entering: Tensor  # u [B, T, D]
    change: Tensor | None
    attention: Tensor  # a [B, H, T]
    values: Tensor  # G [B, M, H, D]
    read: Tensor  # G . u [B, M, H, T]
    by_attention: Tensor  # da [B, M, H, T]


def _look(query: FirstQuery, tokens: Tensor, directions: Tensor, change: Tensor | None = None) -> _Look:
    entering, change = query.enter(tokens, change)
    attention = (query.readers @ entering.transpose(1, 2)).softmax(-1)
    values, offset = query.values_of(attention @ entering, directions)
    read = _read(values, entering)
    return _Look(entering, change, attention, values, read, read + offset)


def _read(values: Tensor, tokens: Tensor) -> Tensor:
    """Products of gradients G [B, M, H, D] and tokens u [B, T, D], summed over D: [B, M, H, T]."""
    return (values.flatten(1, 2) @ tokens.transpose(1, 2)).view(*values.shape[:3], -1)


def _along(query: FirstQuery, look: _Look, change: Tensor) -> Tensor:
    """sum_d g_td c_td [B, M, T] of the gradient g at u along a change c of u [B, T, D]."""
    attention = look.attention[:, None]
    centred = look.by_attention - (attention * look.by_attention).sum(-1, keepdim=True)
    read = look.read if change is look.entering else _read(look.values, change)
    scores = (query.readers @ change.transpose(1, 2))[:, None]  # [B, 1, H, T]
    return (attention * (read + centred * scores)).sum(2)


def _norm_change(norm: nn.LayerNorm, x: Tensor, change: Tensor) -> Tensor:
    """The change of LayerNorm(x) to first order in a change of x."""
    normed, spread = _normed(norm, x)
    change = change - change.mean(-1, keepdim=True)
    change = (change - normed * (normed * change).mean(-1, keepdim=True)) / spread
    return change * norm.weight


def _norm_gradient(norm: nn.LayerNorm, x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient at x [B, C] of one at LayerNorm(x) [M, B, C]."""
    normed, spread = _normed(norm, x)
    gradient = gradient * norm.weight
    gradient = gradient - gradient.mean(-1, keepdim=True) - normed * (normed * gradient).mean(-1, keepdim=True)
    return gradient / spread


def _normed(norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """x normalised without an affine part, and what it was divided by."""
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centred / spread, spread

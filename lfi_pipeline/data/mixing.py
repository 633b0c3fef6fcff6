"""Cuts by maps, mixup and cutmix that labels and interaction maps go through together with the images.

Images 2i and 2i + 1 of a batch are a pair; the odd last one stays alone. Both images of a pair use the same draw:

- mixup (Zhang et al., ICLR 2018): an image becomes share * own + (1 - share) * partner, everywhere.
- cutmix (Yun et al., ICCV 2019): the partner's pixels inside a box, the own ones outside; share = 1 - area of the box.

- cut by maps (data.mixing): what the own image's interaction maps leave out shows the partner.

In all, a place x shows the partner by a known share c(x): 1 - share everywhere, 1 in the box and 0 outside, or
1 - alpha(x). Where an image is cut and mixed too, the cut comes first: mixup and cutmix see both pictures cut. A box is
given in fractions of the image, and a cell (or pixel) that it cuts shows the partner by the part that is covered.
So images, maps on any grid and labels agree, whatever their sizes. Maps follow the pixels: the mass of an own word in
a cell is multiplied by 1 - c, that of a partner's word by c. The sum of a row stays the share of the word's mass that
is shown, the w of the loss (objectives/interaction.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data.augment import interval_shares
from lfi_pipeline.data.config import MixConfig


@dataclass(frozen=True, slots=True)
class Mix:
    """What the B images of a batch show after mixing.

    Attributes:
        share: fp32 [B], how much of the picture mixup or cutmix leave to the own image, from 0 to 1.
        box: fp32 [B, 4], where the partner is pasted: (left, top, right, bottom) in fractions of the picture; zeros
            for mixup and for images that are not mixed.
        partner: int64 [B], place of the other image; the own place for one that has none.
        kept: fp32 [B, rows, columns], by how much each place keeps the own image where it is cut by its maps, from 0 to
            1; None where no image is.
    """

    share: Tensor
    box: Tensor
    partner: Tensor
    kept: Tensor | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Mix:
        """Change every tensor."""
        kept = None if self.kept is None else change(self.kept)
        return Mix(change(self.share), change(self.box), change(self.partner), kept)

    @property
    def own_share(self) -> Tensor:
        """How much of each picture is the own image after all, fp32 [B]."""
        if self.kept is None:
            return self.share
        return 1 - _partner_seen(self, *self.kept.shape[1:]).mean((1, 2))


def draw_mix(config: MixConfig, rngs: Sequence[np.random.Generator], images: int | None = None) -> Mix:
    """Draw the mix of a batch; pair i depends on `rngs[i]` alone.

    Args:
        config: distribution of mixes.
        rngs: one generator for each pair.
        images: B, twice the number of pairs or one more; by default twice.

    Raises:
        ConfigError: a number of images that does not have as many pairs.
    """
    images = 2 * len(rngs) if images is None else images
    if images // 2 != len(rngs):
        raise ConfigError(f"{images} images have {images // 2} pairs, got {len(rngs)} generators.")
    box = torch.zeros(images, 4)
    share = torch.ones(images)
    for pair, rng in enumerate(rngs):
        both = slice(2 * pair, 2 * pair + 2)
        share[both], box[both] = _draw_pair(config, rng)
    partner = torch.arange(images)
    paired = 2 * len(rngs)
    partner[:paired] ^= 1
    return Mix(share, box, partner)


def _draw_pair(config: MixConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Share [] and box [4] of one pair."""
    mixed, pasted = rng.random() < config.probability, rng.random() < 0.5
    if not config.pairs or not mixed:
        return torch.tensor(1.0), torch.zeros(4)
    if not config.cutmix or (config.mixup and not pasted):
        return torch.tensor(rng.beta(config.mixup, config.mixup), dtype=torch.float32), torch.zeros(4)
    side = math.sqrt(1 - rng.beta(config.cutmix, config.cutmix))
    across, down = rng.random(2)
    edges = [across - side / 2, down - side / 2, across + side / 2, down + side / 2]
    box = torch.tensor([min(max(edge, 0.0), 1.0) for edge in edges])
    return 1 - (box[2] - box[0]) * (box[3] - box[1]), box


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Mix pictures, uint8 [B, 3, H, W] -> the same, rounded to nearest."""
    seen = _partner_seen(mix, images.shape[-2], images.shape[-1])[:, None]
    mixed = torch.empty_like(images)
    # one by one they stay in the cache of a CPU, four times as fast; other devices want few calls
    at_once = 1 if images.device.type == "cpu" else max(1, len(images))
    parts = (images, images[mix.partner], seen, mixed)
    for own, other, share, out in zip(*(torch.split(part, at_once) for part in parts), strict=True):
        out.copy_(torch.lerp(own.float(), other.float(), share).round_())
    return mixed


def mix_labels(labels: Tensor, mix: Mix) -> Tensor:
    """Mix labels, or any target that the loss is linear in (probabilities, say), fp32 [B, C] -> the same.

    Labels of pictures that are cut by their maps are those of what is seen then, see `data.mixing`.
    """
    return torch.lerp(labels, labels[mix.partner], (1 - mix.share)[:, None])


def mix_maps(mass: Tensor, words: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """Mix the maps of a picture: its own M rows, then the M rows of its partner.

    A word of the partner that the own image has too is one row, not two that contradict each other: its mass is added
    to the own row, and the partner's row becomes padding. Rows of an image of which nothing is shown are padding.
    Padding is word -1 without mass.

    Args:
        mass: [B, L, M, rows, columns], as `view_maps` gives it: a row sums to the share that the crop keeps.
        words: int64 [B, M], ids, -1 for padding.
        mix: on the same device.

    Returns:
        mass [B, L, 2M, rows, columns] and words [B, 2M].
    """
    seen = _partner_seen(mix, mass.shape[-2], mass.shape[-1]).to(mass.dtype)[:, None, None]
    own_share = mix.own_share
    own_words = torch.where((own_share > 0)[:, None], words, -1)
    other_words = torch.where((own_share < 1)[:, None], words[mix.partner], -1)
    own = mass * (1 - seen) * (own_words >= 0)[:, None, :, None, None]
    other = mass[mix.partner] * seen * (other_words >= 0)[:, None, :, None, None]
    same = (own_words[:, :, None] == other_words[:, None, :]) & (own_words >= 0)[:, :, None]  # [B, M own, M other]
    first = same & (same.cumsum(1) == 1)  # a word that has several own rows goes to the first of them
    merged = same.any(1)  # [B, M other]
    own = own + torch.einsum("bmn,blnrc->blmrc", first.to(mass.dtype), other)
    other = other * ~merged[:, None, :, None, None]
    return torch.cat([own, other], 2), torch.cat([own_words, torch.where(merged, -1, other_words)], 1)


def mixed_loss(loss_of: Callable[[Tensor], Tensor], target: Tensor, mix: Mix) -> Tensor:
    """Return share * loss(own target) + (1 - share) * loss(partner's target) of each image, [B]; share = `own_share`.

    For targets that cannot be mixed themselves, such as the teacher's embedding of an image.

    Args:
        loss_of: targets [B, ...] -> loss of each image, [B].
        target: [B, ...], of the images before mixing.
        mix: on the same device.
    """
    return torch.lerp(loss_of(target), loss_of(target[mix.partner]), 1 - mix.own_share)


def _partner_seen(mix: Mix, rows: int, columns: int) -> Tensor:
    """Share [B, rows, columns] by which each cell shows the partner."""
    across = interval_shares(mix.box[:, 0], mix.box[:, 2], 1, columns)  # [B, 1, columns]
    down = interval_shares(mix.box[:, 1], mix.box[:, 3], 1, rows)
    area = (mix.box[:, 2] - mix.box[:, 0]) * (mix.box[:, 3] - mix.box[:, 1])
    mixed = torch.where(area[:, None, None] > 0, down.transpose(1, 2) * across, (1 - mix.share)[:, None, None])
    if mix.kept is None:
        return mixed
    size = (rows, columns)
    kept = mix.kept if mix.kept.shape[1:] == size else _resized(mix.kept, size)
    return (1 - mixed) * (1 - kept) + mixed * kept[mix.partner]


def _resized(field: Tensor, size: tuple[int, int]) -> Tensor:
    """Give a field [B, rows, columns] another grid: bilinear, and a mean over what a larger cell covers."""
    return F.interpolate(field[:, None], size=size, mode="bilinear", antialias=True)[:, 0].clamp(0, 1)


_FULL = 0.3
"""From this share of its largest value on, a map shows the image whole."""
_HALF = 0.5
"""A class is seen where more than this share of its map is."""


def shown_by_maps(mass: Tensor, chosen: Tensor) -> Tensor:
    """Return alpha: by how much each cell keeps the own image, fp32 [B, rows, columns] in [0, 1].

    An image is left alone (1 everywhere) where no chosen word has more than half of its map inside the crop.

    Args:
        mass: maps [B, M, rows, columns] as `view_maps` gives them; a row sums to the share that the crop keeps.
        chosen: bool [B, M], words that cut the image out: those that name a class, or all where there are no classes.
    """
    mass = mass.float()
    chosen = chosen & (mass.sum((-2, -1)) > _HALF)
    alpha = (mass / (_FULL * mass.amax((-2, -1), keepdim=True)).clamp_min(1e-12)).clamp(0, 1).square()
    alpha = torch.where(chosen[:, :, None, None], alpha, 0).amax(1)
    return torch.where(chosen.any(1)[:, None, None], alpha, 1)


def visible_labels(labels: Tensor, mass: Tensor, classes: Tensor, own: Tensor, partner: Tensor) -> Tensor:
    """Return the labels of what is seen after the cut: a class of either picture of which more than half is left.

    A labelled class without a map counts as spread over its whole picture.

    Args:
        labels: fp32 [B, K], 0 or 1, of the uncut images.
        mass: [B, M, rows, columns], as above.
        classes: int64 [B, M], the class that a word names; -1 for one that names none.
        own: alpha [B, rows, columns].
        partner: int64 [B], place of the image that shows where the own one does not.
    """
    mine = _seen(labels, mass, classes, own)
    others = _seen(labels[partner], mass[partner], classes[partner], 1 - own)
    return torch.maximum(mine, others)


def _seen(labels: Tensor, mass: Tensor, classes: Tensor, share: Tensor) -> Tensor:
    """Return `labels` without the classes that `share` [B, rows, columns] of the picture does not show."""
    total = mass.sum((-2, -1))
    kept = (mass * share[:, None]).sum((-2, -1)) / total.clamp_min(1e-12)  # [B, M]
    named = (classes >= 0) & (total > 0)
    place = torch.where(named, classes, 0)
    with_map = torch.zeros_like(labels).scatter_reduce(1, place, named.to(labels.dtype), "amax")
    of_map = torch.zeros_like(labels).scatter_reduce(1, place, torch.where(named, kept, 0).to(labels.dtype), "amax")
    visible = torch.where(with_map > 0, of_map, share.mean((-2, -1))[:, None].to(labels.dtype))
    return labels * (visible > _HALF)

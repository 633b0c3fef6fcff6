"""Cut an image out by its own interaction maps: what they leave out will be replaced by another picture.

    alpha(x) = max over the image's class words of clamp(map(x) / (0.3 max map), 0, 1)^2
    picture  = alpha own + (1 - alpha) other

The edge is soft and takes a margin of the object's surroundings along. The form is this project's choice.
"""

from __future__ import annotations

import torch
from torch import Tensor

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

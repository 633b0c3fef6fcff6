"""How well do interaction maps, cut at one threshold, cover the object that the word names?

The rule of weakly supervised localisation: Choe, Oh, Lee, Chun, Akata, Shim, "Evaluating Weakly Supervised Object
Localization Methods Right", CVPR 2020, section 4: maps are upsampled bilinearly and normalised, and the threshold, the
same for all images, is the one that serves best. Three things differ. Their MaxBoxAcc counts boxes that overlap by a
half and their PxAP is an average precision of pixels; this is the mean over words of the IoU with the mask. A map is
divided by its maximum, not stretched from its minimum to its maximum: a uniform map stays the whole image. And the
threshold is chosen on the very maps that are scored, so the score is that of the best choice, for teacher and student
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

THRESHOLDS = tuple(step / 100 for step in range(1, 100))
"""Shares of a map's maximum. 0 is left out: at 0 any map is the whole image."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Of many maps with their masks.

    Attributes:
        iou: mean over the maps, at the threshold where it is largest.
        threshold: the smallest such one of `THRESHOLDS`.
        count: maps.
    """

    iou: float
    threshold: float
    count: int


def threshold_ious(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the IoU of {pixels at t times the map's maximum or above} and the mask, for each t of `THRESHOLDS`.

    Args:
        maps: [P, gh, gw], non-negative.
        masks: bool [P, H, W].

    Returns:
        fp32 [P, thresholds]; 0 throughout for an all-zero map.
    """
    bins = len(THRESHOLDS) + 1
    large = F.interpolate(maps[:, None].float(), masks.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
    peak = large.amax(1, keepdim=True)
    steps = torch.tensor(THRESHOLDS, device=maps.device)
    passed = torch.bucketize(large / peak.clamp_min(torch.finfo().tiny), steps, right=True)  # thresholds, by each pixel
    place = torch.arange(len(maps), device=maps.device)[:, None] * 2 + masks.flatten(1)
    pixels = torch.bincount((place * bins + passed).flatten(), minlength=len(maps) * 2 * bins).view(-1, 2, bins)
    outside, inside = pixels.flip(-1).cumsum(-1).flip(-1)[..., 1:].unbind(1)  # that pass each threshold
    union = outside + masks.flatten(1).sum(1, keepdim=True)
    return (inside / union.clamp_min(1)) * (peak > 0)


def best_overlap(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> Overlap | None:
    """Score pairs of map [gh, gw] and mask [H, W]; sizes may differ. Maps are enlarged one at a time.

    Returns:
        None where there are no pairs.
    """
    if not maps:
        return None
    total = torch.zeros(len(THRESHOLDS), dtype=torch.float64)
    pairs = zip(maps, masks, strict=True)
    for each, mask in tqdm(pairs, desc="overlap with masks", unit="map", total=len(maps), leave=False):
        total += threshold_ious(each[None], mask[None])[0].cpu()
    best = int(total.argmax())
    return Overlap(iou=float(total[best]) / len(maps), threshold=THRESHOLDS[best], count=len(maps))

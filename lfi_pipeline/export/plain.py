"""Turn a student into a plain timm model: its backbone, with the trained head as timm's own classifier."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lfi_pipeline.students import Student

TOLERANCE = 1e-6
"""Largest difference of two outputs that count as equal, in units of the larger of 1 and their largest magnitude."""

INSIDE, APART, SLOTS, NONE = "inside", "apart", "slots", "none"


@dataclass(frozen=True, slots=True)
class PlainModel:
    """A student without anything of this project.

    Attributes:
        model: timm model in evaluation mode, on the CPU.
        head: where the trained head is: `inside` as timm's classifier; `apart`, since timm's classifier of this family
            is more than one linear layer; `slots`: left out, since it is trained to be read together with slots, which
            no timm model has; `none`: the student was trained without one.
        linear: the head that is `apart`.
    """

    model: Any
    head: str
    linear: nn.Linear | None = None


@torch.no_grad()
def plain_model(student: Student) -> PlainModel:
    """Return a copy of `student` as a timm model; the student stays as it is."""
    backbone = copy.deepcopy(student.backbone).cpu().eval()
    head = student.head
    if student.readout is not None:
        return PlainModel(backbone, SLOTS)
    if head is None:
        return PlainModel(backbone, NONE)
    linear = copy.deepcopy(head).cpu()
    model = copy.deepcopy(backbone)
    images = torch.randn(2, 3, *student.size, generator=torch.Generator().manual_seed(0))
    expected = linear(pooled(backbone, images))
    if _take_in(model, linear) and difference(model.eval()(images), expected) <= TOLERANCE:
        return PlainModel(model, INSIDE)
    return PlainModel(backbone, APART, linear)


def _take_in(model: Any, linear: nn.Linear) -> bool:
    """Make `linear` the classifier of `model`, which has none yet; False where that is not one linear layer."""
    before = model.state_dict().keys()
    model.reset_classifier(linear.out_features)
    classifier = model.get_classifier()
    added = model.state_dict().keys() - before
    fits = (  # some families put a batch norm before the layer, or average two heads
        isinstance(classifier, nn.Linear | nn.Conv2d)
        and classifier.bias is not None
        and classifier.weight.numel() == linear.weight.numel()
        and len(added) == len(classifier.state_dict())
    )
    if fits:
        classifier.weight.copy_(linear.weight.view_as(classifier.weight))
        classifier.bias.copy_(linear.bias)
    return fits


def pooled(model: Any, x: Tensor) -> Tensor:
    """Pooled features [B, D] of normalised images [B, 3, H, W], by timm's own pooling."""
    features: Tensor = model.forward_head(model.forward_features(x), pre_logits=True)
    return features


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the larger of 1 and the largest magnitude; infinite where shapes differ."""
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1.0))

"""The embedding term: a cosine, of mixed images to both embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lfi_pipeline.data.mixing import Mix


def test_it_is_zero_when_aligned_two_when_opposed_and_blind_to_length(bench: Callable[..., Any]) -> None:
    made = bench(objective="embedding")
    batch = made.batch(range(4))
    learner = made.learner
    with torch.no_grad():
        own = learner.terms["embedding"].projection(learner.student(batch.images[learner.student.size]).pooled)
        for target, expected in ((3 * own, 0), (-own, 2)):
            told = made.told(replace(batch, image_embedding=target))
            assert made.losses(told)["embedding"].item() == pytest.approx(expected, abs=1e-6)


def test_its_gradient_reaches_the_backbone_and_not_the_head(bench: Callable[..., Any]) -> None:
    made = bench(objective="embedding")
    loss = made.losses(made.told(made.batch(range(4))))["embedding"]
    assert loss.shape == ()
    assert 0 <= loss.item() <= 2
    loss.backward()
    assert made.learner.student.backbone.patch_embed.proj.weight.grad.abs().max() > 0
    assert made.learner.terms["embedding"].projection.weight.grad.abs().max() > 0
    assert made.learner.student.head.weight.grad is None


def test_a_mixed_image_counts_against_both(bench: Callable[..., Any]) -> None:
    made = bench(objective="embedding")
    batch = made.batch(range(2))
    share = torch.tensor([0.7, 0.7])
    mix = Mix(share, torch.zeros(2, 4), torch.tensor([1, 0]))
    swapped = replace(batch, image_embedding=batch.image_embedding.flip(0))
    with torch.no_grad():
        own, other, mixed = (
            made.losses(made.told(each))["embedding"].item() for each in (batch, swapped, replace(batch, mix=mix))
        )
    assert own != pytest.approx(other)
    assert mixed == pytest.approx(0.7 * own + 0.3 * other, rel=1e-5)

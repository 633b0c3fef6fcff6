"""The term `logits`, built from a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lfi_pipeline.objectives.terms import _TEMPERATURE, logit_distillation
from lfi_pipeline.targets import teacher_logits


def test_it_is_the_divergence_from_the_teachers_zero_shot_logits(bench: Callable[..., Any]) -> None:
    made = bench(objective="logits")
    batch = made.batch(range(4))
    learner = made.learner
    with torch.no_grad():
        found = made.losses(made.told(batch))["logits"]
        own = learner.student(batch.images[learner.student.size]).logits
        wanted = teacher_logits(batch.image_embedding, made.store.zero_shot)
        expected = logit_distillation(own, wanted, temperature=_TEMPERATURE).mean()
    assert expected.item() > 0
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_its_gradient_reaches_head_and_backbone(bench: Callable[..., Any]) -> None:
    made = bench(objective="logits")
    loss = made.losses(made.told(made.batch(range(4))))["logits"]
    assert loss.shape == ()
    loss.backward()
    assert made.learner.student.backbone.patch_embed.proj.weight.grad.abs().max() > 0
    assert made.learner.student.head.weight.grad.abs().max() > 0

"""The presence term: words of the image against words that are not in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F


def test_it_is_the_cross_entropy_of_known_words_image_by_image(bench: Callable[..., Any]) -> None:
    made = bench(objective="presence")
    batch = made.batch(range(5))
    context, supervision = told = made.told(batch)
    learner = made.learner
    with torch.no_grad():
        found = made.losses(told)["presence"]
        output = learner.student(batch.images[learner.student.size], supervision).interaction
        scores = learner.student.queries.presence_scores(output)
    per_image = []
    for b in range(5):
        known = [m for m in range(scores.shape[1]) if not context.present[b, m].isnan()]
        terms = [F.binary_cross_entropy_with_logits(scores[b, m], context.present[b, m]) for m in known]
        per_image.append(float(sum(terms)) / len(terms))
    assert found.item() == pytest.approx(sum(per_image) / 5, rel=1e-5)


def test_own_words_are_present_drawn_ones_absent_and_have_no_map(bench: Callable[..., Any]) -> None:
    made = bench(objective="lfi+presence")
    batch = made.batch(range(8))
    context, supervision = made.told(batch)
    words = batch.words.shape[1]
    own, drawn = context.present[:, :words], context.present[:, words:]
    kept = torch.stack(list(supervision.weights)).sum(0)
    assert torch.equal(own == 1, kept[:, :words] > 0)
    assert own[own != 1].isnan().all()
    assert (drawn == 0).any()
    assert drawn[drawn != 0].isnan().all()
    assert not kept[:, words:].any()
    embeddings = supervision.words[:, words:]
    for b in range(8):
        mine = made.learner.vocabulary[batch.words[b][batch.words[b] >= 0]]
        clash = (embeddings[b, :, None] == mine[None]).all(-1).any(1)
        assert torch.equal(clash, drawn[b].isnan())


def test_the_interaction_term_does_not_see_the_drawn_words(bench: Callable[..., Any]) -> None:
    plain, both = bench(objective="lfi"), bench(objective="lfi+presence")
    both.learner.student.load_state_dict(plain.learner.student.state_dict(), strict=False)
    with torch.no_grad():
        one, other = (made.losses(made.told(made.batch(range(4))))["lfi"] for made in (plain, both))
    torch.testing.assert_close(one, other)


def test_its_gradient_reaches_the_backbone(bench: Callable[..., Any]) -> None:
    made = bench(objective="presence")
    loss = made.losses(made.told(made.batch(range(4))))["presence"]
    assert loss.shape == ()
    assert loss.item() > 0
    loss.backward()
    assert made.learner.student.backbone.patch_embed.proj.weight.grad.abs().max() > 0

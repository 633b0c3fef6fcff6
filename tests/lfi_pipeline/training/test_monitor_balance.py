"""Weights by gradient: ratios as they are defined, whatever the scale of a loss, and nothing of a bad measurement."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students import Student, StudentConfig
from lfi_pipeline.training.monitor import EVERY, MOST_GROWTH, GradientBalance, gradient_squares


def balance(*terms: str) -> GradientBalance:
    return GradientBalance(terms, "task")


def test_a_ratio_is_that_of_the_norms_smoothed() -> None:
    found = balance("lfi", "embedding")
    assert found.ratio("lfi") == 0
    found.update({"task": 4.0, "lfi": 1.0, "embedding": 16.0})
    assert (found.ratio("lfi"), found.ratio("embedding")) == (2.0, 0.5)
    found.update({"task": 1.0, "lfi": 1.0, "embedding": 1.0})
    assert found.ratio("lfi") == pytest.approx(0.8 * 2 + 0.2)
    assert found.ratio("embedding") == pytest.approx(0.8 * 0.5 + 0.2)


def test_what_cannot_be_compared_changes_nothing() -> None:
    found = balance("lfi")
    for squares in ((math.nan, 1.0), (1.0, math.inf), (1.0, 0.0), (1.0, 1e-20)):
        found.update(dict(zip(("task", "lfi"), squares, strict=True)))
    assert found.ratios == {}
    found.update({"task": 0.0, "lfi": 1.0})  # a query head's task has no gradient at its first step
    assert found.ratios == {}
    found.update({"task": 1.0, "lfi": 1.0})
    assert found.ratio("lfi") == 1
    found.update({"task": 0.0, "lfi": 1.0})
    assert found.ratio("lfi") == 1


def test_without_a_task_the_first_term_takes_its_place() -> None:
    found = GradientBalance(("lfi", "embedding"), "lfi")
    found.update({"lfi": 9.0, "embedding": 1.0})
    assert (found.ratio("lfi"), found.ratio("embedding")) == (1.0, 3.0)
    assert not GradientBalance(("lfi",), "lfi").due(0)


def test_it_measures_every_so_often_and_goes_on_exactly() -> None:
    found = balance("lfi")
    assert [step for step in range(3 * EVERY) if found.due(step)] == [0, EVERY, 2 * EVERY]
    assert not balance().due(0)
    found.update({"task": 2.0, "lfi": 7.0})
    found.update({"task": 2.0, "lfi": 5.0})
    other = balance("lfi")
    other.load_state_dict(json.loads(json.dumps(found.state_dict())))
    assert other.ratios == found.ratios
    for each in (found, other):
        for _ in range(100):
            each.update({"task": 1.0, "lfi": 1e-6})
    assert other.ratios == found.ratios


def test_a_solved_terms_weight_grows_no_further() -> None:
    """Flat maps are matched after some steps; what is left is noise, which was weighted up a thousandfold."""
    found = balance("lfi", "embedding")
    found.update({"task": 1.0, "lfi": 1.0, "embedding": 4.0})
    for _ in range(100):
        found.update({"task": 1.0, "lfi": 1e-6, "embedding": 1.0})
    assert found.ratio("lfi") == MOST_GROWTH
    assert found.ratio("embedding") == pytest.approx(1.0)
    found.update({"task": 1.0, "lfi": 1.0, "embedding": 1.0})
    assert found.ratio("lfi") == pytest.approx(0.8 * MOST_GROWTH + 0.2)


def test_a_state_of_an_earlier_release_goes_on_from_its_ratios() -> None:
    found = balance("lfi", "embedding")
    found.load_state_dict({"lfi": 3.0})
    assert (found.ratio("lfi"), found.ratio("embedding")) == (3.0, 0.0)
    for _ in range(100):
        found.update({"task": 1.0, "lfi": 1e-6, "embedding": 1.0})
    assert found.ratio("lfi") == 3 * MOST_GROWTH


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 16, "num_heads": 2}),
        ("resnet10t", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}),
    ],
)
def test_gradients_are_those_at_the_first_tap_by_both_ways(name: str, arguments: dict[str, object]) -> None:
    """One loss reads the pooled features, one the taps; scaled by 3, a gradient is 9 times as large when squared."""
    torch.manual_seed(0)
    student = Student(
        StudentConfig(name=name, image_size=64 if name != "swin_tiny_patch4_window7_224" else 224, kwargs=arguments),
        classes=3, embedding_dim=4,
    )  # fmt: skip
    images = torch.randint(0, 256, (2, 3, *student.size), dtype=torch.uint8)
    features = student(images, with_taps=True)
    assert features.logits is not None
    by_pool = features.logits.square().sum()
    by_taps = sum((tokens.square().mean() for tokens in features.taps), torch.zeros(()))
    losses = {"pool": by_pool, "taps": by_taps, "three": 3 * by_pool, "none": torch.zeros(())}
    found = gradient_squares(losses, features.taps[0], features.pooled)
    assert all(parameter.grad is None for parameter in student.parameters())
    assert float(found["pool"]) > 0
    assert float(found["taps"]) > 0
    assert float(found["none"]) == 0
    assert float(found["three"]) == pytest.approx(9 * float(found["pool"]), rel=1e-3)


def test_the_gradient_is_torchs_own() -> None:
    x = torch.randn(2, 5, requires_grad=True)
    first = nn.Linear(5, 4)(x).relu()
    copy, pooled = first * 1.0, first.sum(1)
    loss = pooled.square().sum() + copy.exp().sum()
    expected = torch.autograd.grad(loss, first, retain_graph=True)[0].square().sum()
    found = gradient_squares({"loss": loss}, copy, pooled)
    torch.testing.assert_close(found["loss"], expected)


def test_features_on_the_side_are_refused() -> None:
    one, other = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    pooled: Tensor = (one * 2).sum(1)
    with pytest.raises(ConfigError, match="constant weight"):
        gradient_squares({"loss": pooled.sum()}, other * 3, pooled)

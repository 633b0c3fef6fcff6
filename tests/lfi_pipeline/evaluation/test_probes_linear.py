"""The linear probe: scikit-learn's optimum, indifferent to the scale of features, sound where a class has no images."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.evaluation import probes as linear_probe
from lfi_pipeline.evaluation.probes import L2_GRID, choose_probe, fit_probe
from lfi_pipeline.training.validate import CLASSIFICATION, MULTI_LABEL, top_k_accuracy

L2 = 3e-3


def single(count: int = 150, width: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    named = torch.randint(classes, (count,), generator=generator)
    features = centres[named] + 1.5 * torch.randn(count, width, generator=generator)
    return features * torch.tensor([1e3, 1.0, 1e-3, 1.0, 7.0, 1.0]) + 5.0, F.one_hot(named, classes).bool()


def several(count: int = 150, width: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(count, width, generator=generator)
    logits = features @ torch.randn(width, classes, generator=generator) - 1
    return 1e3 * features, (torch.rand(count, classes, generator=generator) < logits.sigmoid())


def standardised(features: Tensor) -> np.ndarray:
    return StandardScaler().fit_transform(features.double().numpy())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 2e-3)])
@pytest.mark.parametrize("l2", [1.0, L2])
def test_one_label_an_image_as_scikit_learn_fits_it(dtype: torch.dtype, tolerance: float, l2: float) -> None:
    features, labels = single()
    probe = fit_probe(features.to(dtype), labels, CLASSIFICATION, l2)
    model = LogisticRegression(C=1 / (l2 * len(features)), tol=1e-10, max_iter=5000)
    expected = model.fit(standardised(features), labels.int().argmax(1).numpy()).predict_proba(standardised(features))
    np.testing.assert_allclose(probe.scores(features.to(dtype)), expected, atol=tolerance)
    # the softmax leaves a constant free, which the penalty fixes for weights
    np.testing.assert_allclose(probe.weight, model.coef_, atol=10 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 2e-3)])
def test_several_labels_an_image_as_scikit_learn_fits_each(dtype: torch.dtype, tolerance: float) -> None:
    features, labels = several()
    probe = fit_probe(features.to(dtype), labels, MULTI_LABEL, L2)
    scores = probe.scores(features.to(dtype))
    for each in range(labels.shape[1]):
        model = LogisticRegression(C=1 / (L2 * len(features)), tol=1e-10, max_iter=5000)
        expected = model.fit(standardised(features), labels[:, each].numpy()).predict_proba(standardised(features))
        np.testing.assert_allclose(scores[:, each], expected[:, 1], atol=tolerance)


def test_rows_in_parts_give_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = several()
    whole = fit_probe(features.double(), labels, MULTI_LABEL, L2)
    monkeypatch.setattr(linear_probe, "_ROWS", 40)
    torch.testing.assert_close(fit_probe(features.double(), labels, MULTI_LABEL, L2).weight, whole.weight)


@pytest.mark.parametrize("task", [CLASSIFICATION, MULTI_LABEL])
def test_neither_scale_nor_order_of_the_features_matters(task: str) -> None:
    features, labels = single() if task == CLASSIFICATION else several()
    features = features.double()
    probe = fit_probe(features, labels, task, L2)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    other = fit_probe(1e3 * features[order] - 2e5, labels[order], task, L2)
    torch.testing.assert_close(other.scores(1e3 * features - 2e5), probe.scores(features), atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", [CLASSIFICATION, MULTI_LABEL])
def test_a_class_without_images_scores_nothing_and_changes_nothing(task: str) -> None:
    features, labels = single() if task == CLASSIFICATION else several()
    wider = torch.cat([labels[:, :2], torch.zeros(len(labels), 1, dtype=torch.bool), labels[:, 2:]], 1)
    scores = fit_probe(features, wider, task, L2).scores(features)
    assert (scores[:, 2] == 0).all()
    kept = scores[:, [i for i in range(wider.shape[1]) if i != 2]]
    torch.testing.assert_close(kept, fit_probe(features, labels, task, L2).scores(features))


def test_a_class_that_every_image_has_is_certain() -> None:
    features, labels = several()
    scores = fit_probe(
        features, torch.cat([labels, torch.ones(len(labels), 1, dtype=torch.bool)], 1), MULTI_LABEL, L2
    ).scores(features)
    assert (scores[:, -1] == 1).all()
    torch.testing.assert_close(scores[:, :-1], fit_probe(features, labels, MULTI_LABEL, L2).scores(features))
    only = F.one_hot(torch.ones(len(labels), dtype=torch.long), 3).bool()
    assert fit_probe(features, only, CLASSIFICATION, L2).scores(features).tolist() == only.float().tolist()


def test_a_feature_that_never_varies_is_ignored() -> None:
    features, labels = single()
    constant = torch.full((len(features), 1), 1234.567)
    noise = constant * (1 + 1e-7 * torch.randn(len(features), 1, generator=torch.Generator().manual_seed(0)))
    plain = fit_probe(features, labels, CLASSIFICATION, L2).scores(features)
    for column in (constant, noise):
        both = torch.cat([features, column], 1)
        torch.testing.assert_close(fit_probe(both, labels, CLASSIFICATION, L2).scores(both), plain, atol=1e-3, rtol=0)


def test_the_penalty_is_the_best_on_images_held_back_and_the_fit_is_of_all() -> None:
    features, labels = single()
    tried: list[tuple[int, int]] = []

    def metric(scores: Tensor, truth: Tensor) -> float:
        tried.append((len(scores), len(truth)))
        return top_k_accuracy(scores, truth.float(), 1)

    chosen = choose_probe(features, labels, CLASSIFICATION, metric)
    assert set(tried) == {(30, 30)}
    assert chosen.held_back == 30
    best = max(chosen.grid.values())
    assert chosen.l2 == max(l2 for l2, score in chosen.grid.items() if score == best)
    torch.testing.assert_close(chosen.probe.weight, fit_probe(features, labels, CLASSIFICATION, chosen.l2).weight)
    again = choose_probe(features, labels, CLASSIFICATION, metric)
    assert again.grid == chosen.grid
    assert torch.equal(again.probe.weight, chosen.probe.weight)


def test_the_images_held_back_take_no_part_in_the_fits() -> None:
    """Labels of noise can be learned by heart, and that must not look like skill."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 150, generator=generator)
    labels = F.one_hot(torch.randint(2, (200,), generator=generator), 2).bool()
    chosen = choose_probe(
        features, labels, CLASSIFICATION, lambda scores, truth: top_k_accuracy(scores, truth.float(), 1)
    )
    assert max(chosen.grid.values()) < 0.75


def test_the_sweep_ends_once_several_in_a_row_were_worse_but_not_at_a_tie() -> None:
    features, labels = several()
    falling = iter(range(0, -100, -1))
    assert len(choose_probe(features, labels, MULTI_LABEL, lambda *_: next(falling)).grid) == 5
    level = choose_probe(features, labels, MULTI_LABEL, lambda *_: 0.5)
    assert tuple(level.grid) == L2_GRID
    assert level.l2 == L2_GRID[0]


def test_the_grid_is_spaced_evenly_in_logarithms_from_the_strongest() -> None:
    assert (L2_GRID[0], L2_GRID[-1]) == (10.0, pytest.approx(1e-6))
    assert [a / b for a, b in pairwise(L2_GRID)] == pytest.approx([np.sqrt(10)] * (len(L2_GRID) - 1))


def test_too_few_images_are_refused() -> None:
    features, labels = several()
    with pytest.raises(ConfigError, match="needs 5 training images at least, found 4"):
        choose_probe(features[:4], labels[:4], MULTI_LABEL, lambda *_: 0.0)

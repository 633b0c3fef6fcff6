"""k nearest neighbours: equal to scikit-learn's, whatever the chunks and the scale of the features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.evaluation.probes import TEMPERATURE, knn_scores


def drawn(seed: int, count: int = 60, width: int = 7, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Features and single labels of `count` images around class centres, and features of 25 queries."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    named = torch.randint(classes, (count,), generator=generator)
    features = centres[named] + torch.randn(count, width, generator=generator)
    return features, F.one_hot(named, classes).bool(), torch.randn(25, width, generator=generator)


def reference(features: Tensor, target: npt.NDArray[np.int64], queries: Tensor, k: int) -> KNeighborsClassifier:
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    )
    return model.fit(features.double().numpy(), target).predict_proba(queries.double().numpy())


@pytest.mark.parametrize("k", [1, 5, 20, 60])
def test_one_label_an_image_as_scikit_learn_scores_it(k: int) -> None:
    features, labels, queries = drawn(k)
    expected = reference(features, labels.int().argmax(1).numpy(), queries, k)
    np.testing.assert_allclose(knn_scores(features, labels, queries, k=k), expected, atol=2e-5)


def test_several_labels_an_image_as_scikit_learn_scores_them() -> None:
    features, _, queries = drawn(3)
    labels = torch.rand(60, 5, generator=torch.Generator().manual_seed(3)) < 0.4
    expected = reference(features, labels.long().numpy(), queries, 20)
    positives = np.stack([each[:, 1] for each in expected], 1)
    np.testing.assert_allclose(knn_scores(features, labels, queries, k=20), positives, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    k=st.integers(1, 30),
    chunks=st.tuples(st.integers(1, 30), st.integers(1, 70)),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_neither_chunks_nor_scale_nor_order_matter(seed: int, k: int, chunks: tuple[int, int], scale: float) -> None:
    features, labels, queries = drawn(seed)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    whole = knn_scores(features, labels, queries, k=k)
    again = knn_scores(scale * features[order], labels[order], scale * queries, k=k, chunks=chunks)
    torch.testing.assert_close(again, whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.sum(1), torch.ones(len(queries)))


def test_a_nearer_neighbour_has_more_to_say() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    labels = torch.eye(2).bool()
    ((near, far),) = knn_scores(features, labels, torch.tensor([[2.0, 1.0]]), k=2).tolist()
    assert near / far == pytest.approx(np.exp((2 - 1) / np.sqrt(5) / TEMPERATURE), rel=1e-4)
    even = knn_scores(features, labels, torch.tensor([[2.0, 1.0]]), k=2, temperature=1e6)
    torch.testing.assert_close(even, torch.full((1, 2), 0.5), atol=1e-5, rtol=0)
    sharp = knn_scores(features, labels, torch.tensor([[2.0, 1.0]]), k=2, temperature=1e-6)
    assert sharp.tolist() == [[1.0, 0.0]]  # not a division by zero


def test_a_feature_of_zeros_is_no_error() -> None:
    features, labels, _ = drawn(0)
    assert knn_scores(features, labels, torch.zeros(1, 7)).isfinite().all()


def test_what_cannot_vote_is_refused() -> None:
    features, labels, queries = drawn(0)
    with pytest.raises(ConfigError, match=r"k = 61 of 60 images.*`probes=False`"):
        knn_scores(features, labels, queries, k=61)
    with pytest.raises(ConfigError, match="k = 0 of 60"):
        knn_scores(features, labels, queries, k=0)
    with pytest.raises(ConfigError, match="knn_temperature must be positive"):
        knn_scores(features, labels, queries, temperature=0.0)

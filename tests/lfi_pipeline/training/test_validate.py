"""Mean average precision against a count by hand, and its split by domain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lfi_pipeline.data import read_dataset
from lfi_pipeline.errors import DatasetError
from lfi_pipeline.students import Features
from lfi_pipeline.training.validate import mean_average_precision, predict, score_domains


def by_counting(scores: Tensor, labels: Tensor) -> float:
    """Mean over classes of the precision at the rank of each positive."""
    per_class = []
    for column in range(scores.shape[1]):
        if not labels[:, column].any():
            continue
        ranked = labels[scores[:, column].argsort(descending=True), column].tolist()
        precisions = [sum(ranked[: rank + 1]) / (rank + 1) for rank, positive in enumerate(ranked) if positive]
        per_class.append(sum(precisions) / len(precisions))
    return sum(per_class) / len(per_class)


def test_a_hand_example() -> None:
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.6], [0.7, 0.4]])
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    # first class: positives at ranks 1 and 3, (1 + 2/3) / 2; second: one positive at rank 3
    assert mean_average_precision(scores, labels) == pytest.approx((5 / 6 + 1 / 3) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_random_scores_agree_with_counting(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(40, 7, generator=generator)
    labels = (torch.rand(40, 7, generator=generator) < 0.2).float()
    labels[:, 3] = 0
    assert mean_average_precision(scores, labels) == pytest.approx(by_counting(scores, labels), abs=1e-5)


def test_classes_without_positives_are_left_out() -> None:
    scores, labels = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert mean_average_precision(scores, labels) == 1


def test_perfect_and_worst_order() -> None:
    labels = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    assert mean_average_precision(labels, labels) == 1
    assert mean_average_precision(-labels, labels) == pytest.approx(1 / 4)


def test_no_positive_at_all_is_an_error() -> None:
    with pytest.raises(DatasetError, match="at least one positive"):
        mean_average_precision(torch.rand(3, 2), torch.zeros(3, 2))


def test_domains_are_scored_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(12, 3, generator=generator), torch.ones(12, 3)
    labels[torch.rand(12, 3, generator=generator) < 0.5] = 0
    domains = ["colour", "grey", "photo"] * 4
    result = score_domains(scores, labels, domains, frozenset({"colour", "grey"}))
    photo = torch.tensor([domain == "photo" for domain in domains])
    assert result["map_heldout"] == pytest.approx(by_counting(scores[photo], labels[photo]), abs=1e-5)
    assert result["map_seen"] == pytest.approx(by_counting(scores[~photo], labels[~photo]), abs=1e-5)
    assert set(result["map_per_domain"]) == {"colour", "grey", "photo"}  # type: ignore[arg-type]
    assert result["map_per_domain"]["photo"] == result["map_heldout"]  # type: ignore[index]


def test_without_held_out_images_there_is_no_such_score() -> None:
    result = score_domains(torch.rand(2, 2), torch.ones(2, 2), ["", ""], frozenset({""}))
    assert result["map_heldout"] is None
    assert result["map_seen"] == 1


class Bias(nn.Module):
    """Predicts the mean of the image for every class; a different thing while training."""

    def forward(self, images: Tensor, *, with_taps: bool) -> Features:
        assert not self.training
        assert not with_taps
        logits = images.float().mean((1, 2, 3))[:, None].repeat(1, 64) / 255
        return Features(logits, logits, [], [])


def test_predictions_are_in_order_and_leave_the_mode_alone(scenes_root: Path) -> None:
    dataset = read_dataset("scenes", scenes_root, "val")
    student = Bias().train()
    scores, labels = predict(student, dataset, (32, 32), torch.device("cpu"), batch_size=5)
    whole, _ = predict(student, dataset, (32, 32), torch.device("cpu"), batch_size=16)
    assert student.training
    assert scores.shape == labels.shape == (16, len(dataset.classes))
    assert torch.equal(scores, whole)
    assert ((scores > 0.5) & (scores < 0.74)).all()  # a sigmoid of means in [0, 1]
    for row, sample in zip(labels, dataset.samples, strict=True):
        assert row.nonzero()[:, 0].tolist() == list(sample.labels)

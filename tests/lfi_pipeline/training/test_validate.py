"""Mean average precision against a count by hand, and its split by domain."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.students import Features
from lfi_pipeline.training.validate import Predictions, mean_average_precision, predict, score_domains, top_k_accuracy


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


def test_without_a_positive_or_a_label_there_is_no_score() -> None:
    assert mean_average_precision(torch.rand(3, 2), torch.zeros(3, 2)) is None
    assert mean_average_precision(torch.rand(0, 2), torch.zeros(0, 2)) is None
    assert top_k_accuracy(torch.rand(3, 2), torch.zeros(3, 2), 1) is None


def test_images_without_a_label_do_not_count_in_the_accuracy() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    assert top_k_accuracy(scores, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1) == 1


def test_a_domain_without_a_positive_or_a_readable_image_has_no_score() -> None:
    scores = torch.tensor([[0.5, 0.4], [0.1, 0.6], [0.7, 0.3], [0.9, 0.9]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    read = torch.tensor([True, True, True, False])
    result = score_domains(
        Predictions(scores, labels, read), "multi-label", ["a", "a", "b", "c"], frozenset({"a", "b", "c"})
    )
    # within `a` each class ranks its positive first; the image of `b`, which has none, comes before that of class 0
    assert result["map_per_domain"] == {"a": 1.0, "b": None, "c": None}
    assert result["map_seen"] == 0.75
    result = score_domains(Predictions(scores, labels, read), "multi-label", ["a", "a", "b", "c"], frozenset({"b"}))
    assert result["map_seen"] is None


def test_domains_are_scored_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(12, 3, generator=generator), torch.ones(12, 3)
    labels[torch.rand(12, 3, generator=generator) < 0.5] = 0
    domains = ["colour", "grey", "photo"] * 4
    predictions = Predictions(scores, labels, torch.ones(12, dtype=torch.bool))
    result = score_domains(predictions, "multi-label", domains, frozenset({"colour", "grey"}))
    assert not [name for name in result if name.startswith("top")]
    photo = torch.tensor([domain == "photo" for domain in domains])
    assert result["map_heldout"] == pytest.approx(by_counting(scores[photo], labels[photo]), abs=1e-5)
    assert result["map_seen"] == pytest.approx(by_counting(scores[~photo], labels[~photo]), abs=1e-5)
    assert set(result["map_per_domain"]) == {"colour", "grey", "photo"}  # type: ignore[arg-type]
    assert result["map_per_domain"]["photo"] == result["map_heldout"]  # type: ignore[index]


def test_without_held_out_images_there_is_no_such_score() -> None:
    predictions = Predictions(torch.rand(2, 2), torch.ones(2, 2), torch.ones(2, dtype=torch.bool))
    result = score_domains(predictions, "multi-label", ["", ""], frozenset({""}))
    assert result["map_heldout"] is None
    assert result["map_seen"] == 1


def test_accuracy_is_counted_by_hand_and_by_domain() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.9, 0.1, 0.0]])
    labels = torch.eye(3)[[0, 0, 1, 1, 2]]
    read = torch.tensor([True, True, True, True, False])
    domains = ["seen", "seen", "seen", "other", "seen"]
    result = score_domains(Predictions(scores, labels, read), "classification", domains, frozenset({"seen"}))
    assert result["top1_seen"] == pytest.approx(1 / 3)  # of the three that could be read
    assert result["top1_heldout"] == 1
    assert result["top1_per_domain"] == {"other": result["top1_heldout"], "seen": result["top1_seen"]}
    assert "top5_seen" not in result  # of three classes it says nothing
    assert result["unreadable"] == 1


class Bias(nn.Module):
    """Predicts the mean of the image for every class; a different thing while training."""

    size = (32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Features:
        assert not self.training
        self.batches.append(len(images))
        logits = images.float().mean((1, 2, 3))[:, None].repeat(1, 64) / 255
        return Features(logits, logits, [], [], None)


def asked(
    student: nn.Module, dataset: Dataset, task: str = "multi-label", batch_size: int = 5, **share: int
) -> Predictions:
    (found,) = predict([student], dataset, task, torch.device("cpu"), batch_size=batch_size, **share)  # type: ignore
    return found


def test_predictions_are_in_order_and_leave_the_mode_alone(scenes_root: Path) -> None:
    dataset = read_dataset("scenes", scenes_root, "val")
    student = Bias().train()
    found, whole, wide = (asked(student, dataset, batch_size=size) for size in (5, 16, 32))
    assert student.training
    assert student.batches == [5, 5, 5, 5, 16, 16]  # one size a split, for which a student is compiled once
    assert torch.equal(whole.scores, wide.scores)
    assert found.scores.shape == found.labels.shape == (16, len(dataset.classes))
    assert torch.equal(found.scores, whole.scores)
    assert found.read.all()
    assert ((found.scores > 0.5) & (found.scores < 0.74)).all()  # a sigmoid of means in [0, 1]
    for row, sample in zip(found.labels, dataset.samples, strict=True):
        assert row.nonzero()[:, 0].tolist() == list(sample.labels)
    softmax = asked(student, dataset, "classification")
    torch.testing.assert_close(softmax.scores, torch.full_like(softmax.scores, 1 / 64))


@pytest.mark.parametrize("processes", [2, 3, 20])
def test_shares_of_several_processes_add_up(scenes_root: Path, processes: int) -> None:
    dataset = read_dataset("scenes", scenes_root, "val")
    whole = asked(Bias(), dataset)
    parts = [asked(Bias(), dataset, rank=rank, processes=processes) for rank in range(processes)]
    for name in ("scores", "labels", "read"):
        total = torch.stack([getattr(part, name).float() for part in parts]).sum(0)
        assert torch.equal(total, getattr(whole, name).float())


def test_a_broken_image_is_left_out_and_counted(scenes_root: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes_root, tmp_path / "scenes")
    dataset = read_dataset("scenes", tmp_path / "scenes", "val")
    whole = asked(Bias(), dataset)
    (tmp_path / "scenes" / dataset.samples[4].path).write_bytes(b"not an image")
    found = asked(Bias(), dataset)
    assert found.read.tolist() == [row != 4 for row in range(16)]
    domains = [sample.domain for sample in dataset.samples]
    result = score_domains(found, "multi-label", domains, frozenset(domains))
    assert result["unreadable"] == 1
    others = [row for row in range(16) if row != 4]
    expected = mean_average_precision(whole.scores[others], whole.labels[others])
    assert result["map_seen"] == pytest.approx(expected)
    assert score_domains(whole, "multi-label", domains, frozenset(domains))["unreadable"] == 0

"""Which task the labels of a cache are, its loss, and its score."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.loss import AsymmetricLossMultiLabel

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.objectives.interaction import task_loss
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers import extract as extraction
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.training import TrainConfig
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.learner import load_run
from lfi_pipeline.training.validate import probabilities, resolve_task, top_k_accuracy
from tests.lfi_pipeline.data.layouts import make_pacs
from tests.lfi_pipeline.training.running import metrics, train_lines, train_one

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def one_label_targets(tiny_teacher: CocaTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of 28 images of noise, each of one of seven classes and four domains; as many are for validation."""
    root = make_pacs(tmp_path_factory.mktemp("pacs"), per_class=2)
    rng = np.random.default_rng(0)
    for path in sorted(root.rglob("pic_*")):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    config = extraction.ExtractConfig(
        dataset="pacs", data_root=root, split="train", words=4, samples_per_shard=16, batch_size=16, device="cpu"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "load_teacher", lambda name, **_: tiny_teacher)
        extraction.extract(config, root / "targets")
    return root / "targets"


def test_images_of_one_label_each_are_classified(
    make_config: MakeConfig, one_label_targets: Path, tmp_path: Path
) -> None:
    config = make_config(targets=one_label_targets, val_split="val", lr=1e-2, hold_out=("sketch",))
    summary = train_one(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"] == "classification"
    loaded = load_run(tmp_path / "run", device="cpu")
    store = TargetStore.open(one_label_targets)
    images = PlainImages(read_dataset("pacs", store.source_root, "val"), [(64, 64)])
    right: dict[bool, list[bool]] = {True: [], False: []}
    with torch.no_grad():
        for place, sample in enumerate(images.dataset.samples):
            pixels, labels, _ = images[place]
            logits = loaded.student(pixels[64, 64][None]).logits[0]
            right[sample.domain != "sketch"].append(int(logits.argmax()) == int(labels.argmax()))
    assert (len(right[True]), len(right[False])) == (21, 7)
    assert summary["top1_seen"] == pytest.approx(sum(right[True]) / 21)
    assert summary["top1_heldout"] == pytest.approx(sum(right[False]) / 7)
    assert summary["top1_seen"] <= summary["top5_seen"] <= 1
    best = max(line["top1_seen"] for line in metrics(tmp_path / "run") if line["event"] == "val")
    assert best == load_best_score(tmp_path / "run", images)
    assert train_lines(tmp_path / "run")[0]["task_loss"] == pytest.approx(math.log(7), rel=0.2)


def load_best_score(run: Path, images: PlainImages) -> float:
    """Top-1 of the kept best weights on the domains that were trained on."""
    student = load_run(run, device="cpu", weights="best").student
    right = []
    with torch.no_grad():
        for place, sample in enumerate(images.dataset.samples):
            pixels, labels, _ = images[place]
            if sample.domain != "sketch":
                right.append(int(student(pixels[64, 64][None]).logits.argmax()) == int(labels.argmax()))
    return pytest.approx(sum(right) / len(right))  # type: ignore[no-any-return]


def test_the_same_images_may_be_learned_as_many_labels(
    make_config: MakeConfig, one_label_targets: Path, tmp_path: Path
) -> None:
    config = make_config(targets=one_label_targets, val_split="val", task="multi-label", epochs=1)
    summary = train_one(config, tmp_path / "run")
    assert "top1_seen" not in summary
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"] == "multi-label"


def test_a_broken_validation_image_is_counted_and_training_goes_on(
    make_config: MakeConfig, one_label_targets: Path, tmp_path: Path
) -> None:
    root = tmp_path / "pacs"
    store = TargetStore.open(one_label_targets)
    shutil.copytree(store.source_root, root)
    (root / read_dataset("pacs", root, "val").samples[3].path).write_bytes(b"no image")
    config = make_config(targets=one_label_targets, data_root=root, val_split="val", objective="none", epochs=1)
    assert train_one(config, tmp_path / "run")["unreadable"] == 1


@pytest.mark.parametrize(
    ("asked", "labels", "classes", "expected"),
    [
        ("auto", [(0,), (2,)], 3, "classification"),
        ("auto", [(0,), (1, 2)], 3, "multi-label"),
        ("auto", [(0,), ()], 3, "multi-label"),
        ("multi-label", [(0,), (2,)], 3, "multi-label"),
        ("classification", [(0,), (2,)], 3, "classification"),
        ("none", [(0,), (2,)], 3, "none"),
        ("none", [(), ()], 0, "none"),
    ],
)
def test_the_labels_choose_the_task(asked: str, labels: list[tuple[int, ...]], classes: int, expected: str) -> None:
    assert resolve_task(asked, labels, classes) == expected


@pytest.mark.parametrize(
    ("asked", "labels", "classes", "words"),
    [
        ("auto", [(), ()], 3, "no labels.*`task='none'`"),
        ("auto", [(), ()], 0, "no labels"),
        ("multi-label", [()], 2, "no labels"),
        ("classification", [(0,), (0, 1)], 3, r"exactly one label.*\[1, 2\].*multi-label"),
        ("classification", [(0,), ()], 3, r"\[0, 1\]"),
    ],
)
def test_labels_that_do_not_allow_the_task(asked: str, labels: list[tuple[int, ...]], classes: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve_task(asked, labels, classes)


def test_losses_are_means_over_classes_or_a_cross_entropy() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [-math.log(3), 0.0]])  # sigmoids 1/2, 3/4, 1/4, 1/2
    found = task_loss("multi-label", logits, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    each = (math.log(2) + math.log(4 / 3)) / 2
    torch.testing.assert_close(found, torch.tensor([each, each]))
    found = task_loss("classification", logits, torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    torch.testing.assert_close(found, torch.tensor([math.log(4 / 3), (math.log(4) + math.log(4 / 3)) / 2]))


def test_the_asymmetric_loss_is_the_authors() -> None:
    """timm's copy of their code: value and gradient, at certain answers too, and of mixed labels."""
    reference = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=0, clip=0.05, disable_torch_grad_focal_loss=True)
    for labels in (torch.eye(5)[:3], torch.rand(3, 5)):
        ours = (4 * torch.randn(3, 5)).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        losses = task_loss("multi-label", ours, labels, "asl")
        assert losses.shape == (3,)
        losses.sum().backward()
        wanted = reference(theirs, labels) * (1 if "reduction" not in signature(type(reference)).parameters else 3)
        wanted.backward()
        torch.testing.assert_close(losses.sum(), wanted)
        torch.testing.assert_close(ours.grad, theirs.grad)
    certain = task_loss("multi-label", torch.tensor([[80.0, -80.0]]), torch.tensor([[1.0, 0.0]]), "asl")
    assert 0 <= certain.item() < 1e-30


def test_probabilities_and_accuracy() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])
    torch.testing.assert_close(probabilities("classification", logits), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(probabilities("multi-label", logits), torch.tensor([[0.5, 0.75]]))
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    labels = torch.eye(3)[[1, 2]]
    assert [top_k_accuracy(scores, labels, k) for k in (1, 2, 9)] == [0.5, 1.0, 1.0]

"""Accuracy by group: what a group is, which one is worst, and what weighs how much."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.evaluation import EvaluationConfig, domains, protocols
from lfi_pipeline.evaluation.config import WorstGroupConfig
from lfi_pipeline.evaluation.domains import worst_group
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.learner import load_run
from lfi_pipeline.training.validate import Predictions

CPU = EvaluationConfig(device="cpu")


def split_of(run: Path, split: str) -> Dataset:
    store = load_run(run, device="cpu").store
    return read_dataset(store.source, store.source_root, split)


def planted(monkeypatch: pytest.MonkeyPatch, wrong: frozenset[str], unread: frozenset[str] = frozenset()) -> None:
    """Let the student be right on every image but those whose paths are `wrong`."""

    def predictions(_: object, dataset: Dataset, *rest: object, **more: object) -> list[Predictions]:
        labels = torch.zeros(len(dataset), len(dataset.classes))
        for row, sample in enumerate(dataset.samples):
            labels[row, list(sample.labels)] = 1
        rolled = torch.tensor([sample.path in wrong for sample in dataset.samples])
        read = torch.tensor([sample.path not in unread for sample in dataset.samples])
        scores = torch.where(rolled[:, None], labels.roll(1, 1), labels)
        return [Predictions(scores * read[:, None], labels, read)]

    monkeypatch.setattr(domains, "predict", predictions)


def test_a_group_is_a_class_with_its_field_and_each_counts_once(
    pacs_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PACS: four domains of seven classes, two images each in test; trained on one of each, without sketches."""
    wrong = {"photo/dog/0.png", "photo/dog/1.png", "cartoon/horse/1.png", "sketch/house/0.png"}
    planted(monkeypatch, frozenset(wrong))
    result = worst_group(pacs_run, CPU, WorstGroupConfig(split="test"))
    groups = {(each["class"], each["field"]): each for each in result.details["groups"]}
    assert len(groups) == 28
    assert {each["images"] for each in groups.values()} == {2}
    assert groups["horse", "cartoon"]["accuracy"] == 0.5
    assert groups["horse", "cartoon"]["training_share"] == pytest.approx(1 / 21)
    assert groups["house", "sketch"]["training_images"] == 0
    assert result.details["worst"] == {"class": "dog", "field": "photo"}
    assert result.scores == {
        "worst_group": 0,
        "mean": pytest.approx(52 / 56),
        "adjusted": pytest.approx((21 - 1 - 0.5) / 21),  # sketches, which were not trained on, weigh nothing
    }
    assert result.settings == {
        "dataset": "pacs",
        "split": "test",
        "weights": "last",
        "groups": "class-and-field",
        "least_images": 1,
    }
    assert result.details["training_split"] == "train"


def test_the_field_alone(pacs_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, frozenset({"photo/dog/1.png", "sketch/dog/1.png", "sketch/horse/1.png"}))
    result = worst_group(pacs_run, CPU, WorstGroupConfig(groups="field"))
    assert result.settings["split"] == "val"  # list crossval, by which it was validated
    assert [each["field"] for each in result.details["groups"]] == ["art_painting", "cartoon", "photo", "sketch"]
    assert "class" not in result.details["groups"][0]
    assert result.details["worst"] == {"field": "sketch"}
    assert result.scores["worst_group"] == pytest.approx(5 / 7)
    assert result.scores["adjusted"] == pytest.approx((1 + 1 + 6 / 7) / 3)
    assert result.scores["mean"] == pytest.approx(25 / 28)


def test_small_groups_are_left_out_and_counted(pacs_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that cannot be read count for nothing: without one the group has one image."""
    unread = frozenset({"photo/dog/1.png", "sketch/dog/1.png", "sketch/dog/0.png"})
    planted(monkeypatch, frozenset({"photo/dog/0.png"}), unread)
    result = worst_group(pacs_run, CPU, WorstGroupConfig(split="test", least_images=2))
    left_out = {(each["class"], each["field"]): each["images"] for each in result.details["left_out"]}
    assert left_out == {("dog", "photo"): 1, ("dog", "sketch"): 0}
    assert result.details["unreadable"] == 3
    assert result.scores == {"worst_group": 1, "mean": pytest.approx(52 / 53), "adjusted": None}
    whole = worst_group(pacs_run, CPU, WorstGroupConfig(split="test"))
    assert whole.scores["worst_group"] == 0
    assert whole.scores["adjusted"] == pytest.approx(20 / 21)  # of the sketches of dogs none was trained on
    with pytest.raises(ConfigError, match=r"a group of 3 images or more, and its largest has 2\. Lower `least_images`"):
        worst_group(pacs_run, CPU, WorstGroupConfig(split="test", least_images=3))


@pytest.mark.parametrize("head", ["linear", "queries"])
def test_any_head_is_scored_by_its_own_logits(
    pacs_run: Path, pacs_targets: Path, tmp_path: Path, head: str, train_small: Any
) -> None:
    run = pacs_run if head == "linear" else train_small(pacs_targets, tmp_path / "run", "lfi", head="queries")
    result = worst_group(run, CPU, WorstGroupConfig(split="test"))
    student, dataset = load_run(run, device="cpu").student, split_of(run, "test")
    images, hits = PlainImages(dataset, [student.size]), Counter[tuple[str, str]]()
    for number, sample in enumerate(dataset.samples):
        with torch.no_grad():
            logits = student(images[number][0][student.size][None]).logits
        hits[dataset.classes[sample.labels[0]], sample.domain] += int(logits.argmax()) == sample.labels[0]
    for group in result.details["groups"]:
        assert group["accuracy"] == hits[group["class"], group["field"]] / 2
    assert result.scores["mean"] == pytest.approx(hits.total() / 56)
    assert result.scores["worst_group"] == min(hits[key] / 2 for key in {(c, d) for c, d in _pairs(dataset)})


def _pairs(dataset: Dataset) -> list[tuple[str, str]]:
    return [(dataset.classes[sample.labels[0]], sample.domain) for sample in dataset.samples]


def test_what_has_no_groups_is_refused(
    run_of: dict[str, Path], pacs_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"one label each; task of .*none is 'multi-label'"):
        worst_group(run_of["none"], CPU, WorstGroupConfig())
    with pytest.raises(UnknownNameError, match="'tset'"):
        worst_group(pacs_run, CPU, WorstGroupConfig(split="tset"))
    with pytest.raises(UnknownNameError, match=r"kind of groups 'fields'\. Did you mean 'field'"):
        WorstGroupConfig(groups="fields")
    plain = protocols.read_dataset

    def changed(**fields: Any) -> None:
        def read(*names: Any) -> Dataset:
            dataset = plain(*names)
            return replace(dataset, samples=[replace(dataset.samples[0], **fields), *list(dataset.samples)[1:]])

        monkeypatch.setattr(protocols, "read_dataset", read)

    changed(domain="")
    with pytest.raises(ConfigError, match=r"a group field \(the domain\) for each image; 1 of 28 in split val"):
        worst_group(pacs_run, CPU, WorstGroupConfig())
    for labels in ((), (0, 1)):
        changed(labels=labels)
        with pytest.raises(ConfigError, match="needs one label for each image; 1 of 28 in split val of "):
            worst_group(pacs_run, CPU, WorstGroupConfig())


def test_a_group_that_was_trained_on_and_is_not_scored_leaves_no_weighted_mean(
    pacs_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = protocols.read_dataset

    def without_dogs(*names: Any) -> Dataset:
        dataset = plain(*names)
        return replace(dataset, samples=[each for each in dataset.samples if "photo/dog" not in each.path])

    monkeypatch.setattr(protocols, "read_dataset", without_dogs)
    result = worst_group(Path(shutil.copytree(pacs_run, tmp_path / "run")), CPU, WorstGroupConfig())
    assert result.scores["adjusted"] is None
    (left_out,) = result.details["left_out"]
    assert (left_out["class"], left_out["field"], left_out["images"], left_out["training_images"]) == (
        *("dog", "photo"),
        *(0, 1),
    )

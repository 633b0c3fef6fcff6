"""Scores on the domains that a run left out: which images count, and that none of them was trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lfi_pipeline.core.errors import ConfigError, DatasetError, UnknownNameError
from lfi_pipeline.core.parse import unseal_folder
from lfi_pipeline.data import read_dataset
from lfi_pipeline.evaluation import EvaluationConfig, domains
from lfi_pipeline.evaluation.config import CrossDomainConfig
from lfi_pipeline.evaluation.domains import cross_domain
from lfi_pipeline.training import RuntimeConfig, train
from lfi_pipeline.training.data import PlainImages, TargetImages
from lfi_pipeline.training.learner import load_run
from lfi_pipeline.training.run_dir import recorded_config
from lfi_pipeline.training.validate import mean_average_precision

CPU = EvaluationConfig(device="cpu")


def test_every_image_of_the_domain_counts_of_all_splits(left_out_run: Path, scenes_root: Path) -> None:
    result = cross_domain(left_out_run, CPU, CrossDomainConfig())
    student = load_run(left_out_run, device="cpu").student
    scores, labels = [], []
    for split in ("train", "val"):
        dataset = read_dataset("scenes", scenes_root, split)
        images = PlainImages(dataset, [(64, 64)])
        for number, sample in enumerate(dataset.samples):
            if sample.domain == "grey":
                views, truth, _ = images[number]
                with torch.no_grad():
                    scores.append(student(views[(64, 64)][None]).logits.sigmoid()[0])
                labels.append(truth)
    expected = mean_average_precision(torch.stack(scores), torch.stack(labels))
    assert result.scores == {"map": pytest.approx(expected, abs=1e-4)}
    assert result.details["domains"]["grey"] == {"images": len(labels), **result.scores}
    assert len(labels) == 8 + 4  # a third of 24, a fourth of 16
    assert result.details["trained_on"] == ["colour", "outline"]
    assert result.settings == {"dataset": "scenes", "split": "train+val", "weights": "last", "domains": ["grey"]}


def test_no_image_of_the_domain_is_read_in_training(
    left_out_run: Path, tmp_path: Path, scenes_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    inner = TargetImages._image

    def spied(images: TargetImages, position: int, least: int) -> object:
        read.add(images.paths[position])
        return inner(images, position, least)

    monkeypatch.setattr(TargetImages, "_image", spied)
    train([(recorded_config(left_out_run), tmp_path / "again")], RuntimeConfig(device="cpu", track=()))
    samples = read_dataset("scenes", scenes_root, "train").samples
    assert read == {sample.path for sample in samples if sample.domain != "grey"}


def test_a_domain_that_training_lacks_is_left_out_without_being_named(run_of: dict[str, Path]) -> None:
    """Domain `photo` of the scenes is in val alone."""
    result = cross_domain(run_of["none"], CPU, CrossDomainConfig())
    assert result.settings["domains"] == ["photo"]
    assert result.details["domains"]["photo"]["images"] == 4


def test_splits_that_are_asked_for(left_out_run: Path, run_of: dict[str, Path]) -> None:
    result = cross_domain(left_out_run, CPU, CrossDomainConfig(splits=["val", "val"]))
    assert result.settings["split"] == "val"
    assert result.details["domains"]["grey"]["images"] == 4
    with pytest.raises(UnknownNameError, match="'tset'"):
        cross_domain(left_out_run, CPU, CrossDomainConfig(splits=["tset"]))
    with pytest.raises(DatasetError, match=r"missing: test, annotations/captions_test\.json"):  # scenes may have one
        cross_domain(left_out_run, CPU, CrossDomainConfig(splits=["test"]))
    with pytest.raises(ConfigError, match=r"trained on all there are: colour, grey, outline.*`hold_out`"):
        cross_domain(run_of["none"], CPU, CrossDomainConfig(splits=["train"]))


def test_a_domain_without_images_is_told(left_out_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(left_out_run, tmp_path / "run"))
    record = json.loads((run / "config.json").read_text())
    record["settings"]["hold_out"] = ["photo"]
    unseal_folder(run)  # changed by hand
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(DatasetError, match="none of photo"):
        cross_domain(run, CPU, CrossDomainConfig(splits=["train"]))


@pytest.mark.parametrize(("splits", "told"), [((), "all"), (("train", "val", "test"), "train+val+test")])
def test_one_label_an_image_and_splits_that_overlap(pacs_run: Path, splits: tuple[str, ...], told: str) -> None:
    """PACS: list test names the images of train and crossval again, and split all has no list."""
    result = cross_domain(pacs_run, CPU, CrossDomainConfig(splits=splits))
    assert result.settings["split"] == told
    assert result.details["domains"]["sketch"]["images"] == 14
    assert result.scores.keys() == {"top1", "map"}
    assert result.scores["top1"] is not None
    assert (14 * result.scores["top1"]) % 1 == pytest.approx(0, abs=1e-5)
    assert result.details["trained_on"] == ["art_painting", "cartoon", "photo"]


def test_a_run_without_a_task_has_no_class_scores(left_out_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = replace(load_run(left_out_run, device="cpu"), task="none")
    monkeypatch.setattr(domains, "load", lambda run, common: loaded)
    with pytest.raises(ConfigError, match="trained without a task"):
        cross_domain(left_out_run, CPU, CrossDomainConfig())

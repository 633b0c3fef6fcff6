"""Class names as queries: the scores, their ceiling and chance, and how much of what is scored was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lfi_pipeline.core.errors import ConfigError, ImageReadError
from lfi_pipeline.evaluation import EvaluationConfig
from lfi_pipeline.evaluation.config import ZeroShotConfig
from lfi_pipeline.evaluation.zero_shot import _chance, _scores, presence_logits, teacher_zero_shot, zero_shot
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.learner import load_run
from lfi_pipeline.training.validate import mean_average_precision

CPU = EvaluationConfig(device="cpu")


def test_several_labels_an_image(presence_run: Path, tiny_val_targets: Path) -> None:
    result = zero_shot(presence_run, CPU, ZeroShotConfig(targets=tiny_val_targets))
    store = TargetStore.open(tiny_val_targets)
    names = [name.replace("_", " ") for name in store.spec.dataset.classes]
    trained = TargetStore.open(load_run(presence_run, device="cpu").config.data.targets)
    words = {**dict(zip(trained.vocabulary.words, trained.vocabulary.embeddings, strict=True))}
    words |= dict(zip(store.vocabulary.words, store.vocabulary.embeddings, strict=True))
    assert store.zero_shot is not None
    seeds = [torch.tensor(words.get(n, store.zero_shot.embeddings[i])).float() for i, n in enumerate(names)]
    logits = presence_logits(load_run(presence_run, device="cpu").student, torch.stack(seeds), store, store.usable)
    truth = torch.zeros(16, 64, dtype=torch.long)
    for row, labels in enumerate(store.index.labels):
        truth[row, list(labels)] = 1
    ceiling = teacher_zero_shot(store)
    assert ceiling is not None
    assert result.scores == {
        "map": pytest.approx(mean_average_precision(logits.sigmoid(), truth), abs=1e-4),
        "teacher_map": pytest.approx(ceiling.value),
    }
    assert result.details["map_by_softmax"] == pytest.approx(mean_average_precision(logits.softmax(1), truth), abs=1e-4)
    found = truth.sum(0)
    assert result.details["chance"] == {"map": pytest.approx(float((found[found > 0] / 16).mean()))}
    in_words = sum(name in words for name in names)
    assert result.details["class_queries"] == {"words": in_words, "prompts": 64 - in_words}
    domains = result.details["domains"]
    assert {name: each["images"] for name, each in domains.items()} == dict.fromkeys(sorted(domains), 4)
    grey = torch.tensor([domain == "grey" for domain in store.index.domains])
    assert domains["grey"]["map"] == pytest.approx(
        mean_average_precision(logits[grey].sigmoid(), truth[grey]), abs=1e-4
    )
    assert result.settings["targets"] == store.spec.fingerprint
    assert (result.settings["dataset"], result.settings["split"]) == ("scenes", "val")


def test_what_was_trained_on_is_told(presence_run: Path, tiny_targets: Path, tiny_val_targets: Path) -> None:
    seen = zero_shot(presence_run, CPU, ZeroShotConfig(targets=tiny_targets)).details["trained_on"]
    assert seen["images"] == 16  # those of the left-out domain were not
    assert (seen["same_data_set"], seen["same_split"], seen["labelled_classes"]) == (True, True, 64)
    assert seen["domains"] == ["colour", "outline"]
    other = zero_shot(presence_run, CPU, ZeroShotConfig(targets=tiny_val_targets)).details["trained_on"]
    assert (other["images"], other["same_data_set"], other["same_split"]) == (0, True, False)


def test_one_label_an_image_of_another_data_set(presence_run: Path, pacs_targets: Path) -> None:
    result = zero_shot(presence_run, CPU, ZeroShotConfig(targets=pacs_targets))
    assert result.scores.keys() == {"top1", "top5", "teacher_top1", "teacher_top5"}
    ceiling = teacher_zero_shot(TargetStore.open(pacs_targets))
    assert ceiling is not None
    assert result.scores["teacher_top1"] == pytest.approx(ceiling.value)
    assert result.details["chance"] == {"top1": 1 / 7, "top5": 5 / 7}
    assert result.details["class_queries"] == {"words": 7, "prompts": 0}
    seen = result.details["trained_on"]
    assert (seen["images"], seen["same_data_set"], seen["domains"]) == (0, False, [])
    assert seen["labelled_classes"] == 5  # scenes have no house and no person
    assert set(result.details["domains"]) == {"art_painting", "cartoon", "photo", "sketch"}


@pytest.mark.parametrize(("classes", "ranks"), [(3, ["top1"]), (5, ["top1"]), (6, ["top1", "top5"])])
def test_there_is_no_top_5_of_five_classes_or_fewer(classes: int, ranks: list[str]) -> None:
    truth = torch.eye(classes)
    assert list(_scores(truth, truth, torch.ones(classes, dtype=torch.bool), True, "")) == ranks
    assert list(_scores(None, truth, torch.ones(classes, dtype=torch.bool), True, "")) == ranks
    assert _chance(truth, True) == {name: int(name[3:]) / classes for name in ranks}


@pytest.mark.parametrize("kind", ["none", "lfi"])
def test_a_student_that_scores_no_words_is_refused(run_of: dict[str, Path], tiny_val_targets: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match="readout 'text'"):
        zero_shot(run_of[kind], CPU, ZeroShotConfig(targets=tiny_val_targets))


def test_images_that_moved(presence_run: Path, tiny_val_targets: Path, scenes_root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(scenes_root, moved)
    expected = zero_shot(presence_run, CPU, ZeroShotConfig(targets=tiny_val_targets)).scores
    found = zero_shot(presence_run, CPU, ZeroShotConfig(targets=tiny_val_targets, scored_root=moved))
    assert found.scores == expected
    of_the_run = EvaluationConfig(device="cpu", data_root=tmp_path / "nowhere")
    with pytest.raises(ImageReadError):
        zero_shot(presence_run, of_the_run, ZeroShotConfig(targets=tiny_val_targets))
    own = ZeroShotConfig(targets=tiny_val_targets, scored_root=moved)
    assert zero_shot(presence_run, of_the_run, own).scores == expected


def test_labels_are_needed(presence_run: Path, tiny_val_targets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lfi_pipeline.targets.index import TargetIndex

    monkeypatch.setattr(TargetIndex, "labels", [()] * 24)
    with pytest.raises(ConfigError, match="need labels"):
        zero_shot(presence_run, CPU, ZeroShotConfig(targets=tiny_val_targets))

"""Protocol classification: a run's own head, k-NN and the linear probe, and the images that they are fitted on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.core.parse import unseal_folder
from lfi_pipeline.data import Dataset, images, read_dataset
from lfi_pipeline.evaluation import EvaluationConfig, evaluate_runs
from lfi_pipeline.evaluation import protocols as loading
from lfi_pipeline.evaluation.config import ClassificationConfig
from lfi_pipeline.evaluation.protocols import ProtocolResult
from lfi_pipeline.evaluation.zero_shot import label_matrix, teacher_shares
from lfi_pipeline.report import load_run as read_run
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.learner import load_run
from lfi_pipeline.training.validate import mean_average_precision

CPU = EvaluationConfig(device="cpu")


def classification_of(run: Path, common: EvaluationConfig = CPU, **options: Any) -> ProtocolResult:
    config = ClassificationConfig(**{"probes": False, **options})
    return evaluate_runs([run], {"classification": config}, common)[run]["classification"]


def test_the_head_scores_as_at_the_end_of_training(run_of: dict[str, Path]) -> None:
    found = classification_of(run_of["lfi"])
    summary = json.loads((run_of["lfi"] / "summary.json").read_text())
    assert found.scores["map_seen"] == pytest.approx(summary["map_seen"])
    assert found.scores["map_heldout"] == pytest.approx(summary["map_heldout"])
    domains = found.details["map_per_domain"]
    assert set(domains) == {"colour", "grey", "outline", "photo"}
    assert domains["photo"] == found.scores["map_heldout"]
    assert all(0 <= value <= 1 for value in domains.values())
    assert found.settings == {"dataset": "scenes", "split": "val", "weights": "last", "probes": False}
    assert read_run(run_of["lfi"]).map_seen == found.scores["map_seen"]


def test_a_split_that_is_named_is_scored_and_stands_in_the_settings(run_of: dict[str, Path]) -> None:
    result = classification_of(run_of["none"], split="train")
    assert result.settings == {"dataset": "scenes", "split": "train", "weights": "last", "probes": False}
    assert set(result.details["map_per_domain"]) == {"colour", "grey", "outline"}
    assert result.file_name != classification_of(run_of["none"]).file_name
    assert classification_of(run_of["none"], split="val").file_name == classification_of(run_of["none"]).file_name
    reported = read_run(run_of["none"]).map_seen  # of validation, whatever was scored last
    classification_of(run_of["none"], split="train")
    assert read_run(run_of["none"]).map_seen == reported == classification_of(run_of["none"]).scores["map_seen"]


def test_the_teacher_answers_beside_the_student_where_its_cache_is_given(
    run_of: dict[str, Path], tiny_val_targets: Path, tiny_targets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = classification_of(run_of["none"])
    beside = classification_of(run_of["none"], targets=tiny_val_targets)
    assert (beside.settings, beside.file_name) == (alone.settings, alone.file_name)  # the student's scores are the same
    assert {name: beside.scores[name] for name in alone.scores} == dict(alone.scores)
    store = TargetStore.open(tiny_val_targets)
    assert store.zero_shot is not None
    shares, labels = teacher_shares(store, store.zero_shot, store.usable), label_matrix(store.index.labels, 64)
    photo = torch.tensor([domain == "photo" for domain in store.index.domains])
    assert beside.scores["teacher_map_heldout"] == pytest.approx(mean_average_precision(shares[photo], labels[photo]))
    assert beside.scores["teacher_map_seen"] == pytest.approx(mean_average_precision(shares[~photo], labels[~photo]))
    assert beside.details["teacher_map_per_domain"]["photo"] == beside.scores["teacher_map_heldout"]

    other = classification_of(run_of["none"], targets=tiny_targets)  # of the training split
    assert other.scores == alone.scores
    assert "split val" in capsys.readouterr().err


def test_held_out_training_domains_are_scored_apart(run_of: dict[str, Path]) -> None:
    path = run_of["none"] / "config.json"
    record = json.loads(path.read_text())
    unseal_folder(path.parent)  # changed by hand
    path.write_text(json.dumps(record | {"seen_domains": ["colour"]}))
    found = classification_of(run_of["none"])
    assert found.scores["map_seen"] == found.details["map_per_domain"]["colour"]
    assert found.scores["map_heldout"] not in (None, found.details["map_per_domain"]["photo"])


def test_best_weights_and_moved_images_on_request(
    run_of: dict[str, Path], scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of["lfi"]
    moved = Path(shutil.copytree(scenes_root, tmp_path / "moved"))
    roots: list[Path] = []
    read = images.read_bytes
    monkeypatch.setattr(images, "read_bytes", lambda root, path: (roots.append(root), read(root, path))[1])
    common = EvaluationConfig(device="cpu", weights="best", data_root=moved)
    best = classification_of(run, common)
    assert best.settings["weights"] == "best"
    assert set(roots) == {moved}
    weights = load_file(run / "checkpoints/best.safetensors")
    unseal_folder(run)  # changed by hand
    save_file({name: torch.zeros_like(value) for name, value in weights.items()}, run / "checkpoints/best.safetensors")
    assert classification_of(run, common).scores != best.scores
    assert classification_of(run).scores == best.scores


@pytest.fixture
def without_task(run_of: dict[str, Path]) -> Path:
    """The run of objective `none`, made one of pure distillation."""
    path = run_of["none"] / "config.json"
    unseal_folder(path.parent)  # changed by hand
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "none"}))
    weights = run_of["none"] / "checkpoints/last.safetensors"
    save_file({n: v for n, v in load_file(weights).items() if not n.startswith("head.")}, weights)
    return run_of["none"]


def test_a_run_without_a_task_has_no_heads_scores(without_task: Path) -> None:
    assert classification_of(without_task).scores == {}


def test_the_probes_are_those_of_the_students_features(run_of: dict[str, Path], scenes_root: Path) -> None:
    """Against scikit-learn's k-NN and regression on features taken one image at a time."""
    found = classification_of(run_of["lfi"], probes=True)
    student = load_run(run_of["lfi"], device="cpu").student
    features, labels, domains = {}, {}, []
    for split in ("train", "val"):
        dataset = read_dataset("scenes", scenes_root, split)
        images = PlainImages(dataset, [student.size])
        with torch.no_grad():
            features[split] = np.concatenate(
                [student(images[i][0][student.size][None]).pooled for i in range(len(images))]
            )
        labels[split] = torch.stack([images[i][1] for i in range(len(images))])
        domains = [sample.domain for sample in dataset.samples]
    voters = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    voters.fit(features["train"], labels["train"].long().numpy())
    votes = voters.predict_proba(features["val"])
    known = labels["train"].bool().any(0) & ~labels["train"].bool().all(0)
    scaler = StandardScaler().fit(features["train"])
    told = found.details["probes"]
    model = LogisticRegression(C=1 / (told["l2"] * len(labels["train"])), tol=1e-9, max_iter=3000)
    scores = {name: torch.zeros_like(labels["val"]) for name in ("knn", "linear")}
    for each in range(len(known)):
        if known[each]:
            scores["knn"][:, each] = torch.from_numpy(votes[each][:, 1])
            model.fit(scaler.transform(features["train"]), labels["train"][:, each].numpy())
            scores["linear"][:, each] = torch.from_numpy(model.predict_proba(scaler.transform(features["val"]))[:, 1])
    for part, rows in (("heldout", [d == "photo" for d in domains]), ("seen", [d != "photo" for d in domains])):
        for name, tolerance in (("knn", 1e-6), ("linear", 0.01)):
            again = mean_average_precision(scores[name][rows], labels["val"][rows])
            assert found.scores[f"{name}_map_{part}"] == pytest.approx(again, abs=tolerance)
    assert told["training_images"] == len(labels["train"])
    assert told["validation_images"] == len(labels["val"])
    assert told["held_back"] == len(labels["train"]) // 5
    assert told["l2"] in [l2 for l2, _ in told["l2_grid"]]
    assert told["knn_map_per_domain"]["photo"] == found.scores["knn_map_heldout"]
    assert found.settings == {
        **{"dataset": "scenes", "split": "val", "weights": "last"},
        **{"probes": True, "probe_limit": None, "knn_k": 20, "knn_temperature": 0.07},
    }


def test_probes_see_no_held_out_domain_and_no_more_images_than_asked_for(
    run_of: dict[str, Path], scenes_root: Path
) -> None:
    training = read_dataset("scenes", scenes_root, "train")
    path = run_of["none"] / "config.json"
    unseal_folder(path.parent)  # changed by hand
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seen_domains": ["grey"]}))
    found = classification_of(run_of["none"], probes=True, knn_k=3)
    grey = [sample.domain for sample in training.samples].count("grey")
    assert 5 <= found.details["probes"]["training_images"] == grey < len(training)
    limited = classification_of(run_of["none"], probes=True, knn_k=3, probe_limit=5)
    assert limited.details["probes"]["training_images"] == 5
    assert limited.settings["probe_limit"] == 5


def test_a_run_without_a_task_is_probed_by_the_labels_there_are(without_task: Path) -> None:
    scores = classification_of(without_task, probes=True).scores
    assert {name.split("_")[0] for name in scores} == {"knn", "linear"}
    assert scores["linear_map_seen"] is not None


def test_one_label_an_image_is_scored_by_top_1_too(run_of: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def first_label(*names: Any) -> Dataset:
        dataset = read_dataset(*names)
        return replace(dataset, samples=[replace(s, labels=s.labels[:1]) for s in dataset.samples])

    monkeypatch.setattr(loading, "read_dataset", first_label)
    path = run_of["none"] / "config.json"
    unseal_folder(path.parent)  # changed by hand
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "classification"}))
    scores = classification_of(run_of["none"], probes=True).scores
    for prefix in ("", "knn_", "linear_"):
        for part in ("seen", "heldout"):
            assert 0 <= (scores[f"{prefix}top1_{part}"] or 0.0) <= 1
            assert f"{prefix}map_{part}" in scores


def test_unreadable_images_neither_vote_nor_count(run_of: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"train": 0, "val": 0}
    plain = PlainImages.__getitem__

    def item(self: PlainImages, position: int) -> Any:
        views, labels, _ = plain(self, position)
        broken[self.dataset.split] += position % 4 == 0
        return views, labels, position % 4 != 0

    monkeypatch.setattr(PlainImages, "__getitem__", item)
    found = classification_of(run_of["none"], probes=True, knn_k=3)
    assert found.details["unreadable"] == broken["val"] > 0
    assert found.details["probes"]["training_images"] == 3 * broken["train"]
    assert found.details["probes"]["validation_images"] == 3 * broken["val"]


def test_what_cannot_be_probed_is_refused(run_of: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of["none"]
    with pytest.raises(ConfigError, match=r"k = 500 of \d+ images"):
        classification_of(run, probes=True, knn_k=500)
    for name, value in (("probe_limit", 0), ("knn_k", 0), ("knn_temperature", 0.0)):
        with pytest.raises(ConfigError, match=f"{name} must be"):
            ClassificationConfig(**{name: value})
    path = run / "config.json"
    record = json.loads(path.read_text())
    unseal_folder(path.parent)  # changed by hand
    path.write_text(json.dumps(record | {"seen_domains": ["photo"]}))
    with pytest.raises(DatasetError, match=r"trained on \(photo\); it has none"):
        classification_of(run, probes=True)
    unseal_folder(path.parent)  # changed by hand
    path.write_text(json.dumps(record))
    plain = loading.read_dataset
    other = lambda *names: replace(d := plain(*names), classes=tuple(f"no {name}" for name in d.classes))  # noqa: E731
    monkeypatch.setattr(loading, "read_dataset", lambda *names: (other if names[2] == "train" else plain)(*names))
    with pytest.raises(DatasetError, match="must have only classes of the cache"):
        classification_of(run, probes=True)
    bare = lambda *names: replace(d := plain(*names), samples=[replace(s, labels=()) for s in d.samples])  # noqa: E731
    monkeypatch.setattr(loading, "read_dataset", lambda *names: (bare if names[2] == "train" else plain)(*names))
    with pytest.raises(ConfigError, match="need training images with labels"):
        classification_of(run, probes=True)
    monkeypatch.setattr(loading, "read_dataset", bare)
    with pytest.raises(ConfigError, match="classification needs labels; split val"):
        classification_of(run)

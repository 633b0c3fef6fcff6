"""Scoring a finished run: what scores.json holds, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.data import images, read_dataset
from lfi_pipeline.errors import ConfigError, DatasetError, RunError, TargetsError
from lfi_pipeline.evaluation import evaluate_run, grounded_words, teacher_grounding
from lfi_pipeline.evaluation.grounding import peaks_in_mask, score
from lfi_pipeline.report import load_run as read_run
from lfi_pipeline.students import LearnedQueries
from lfi_pipeline.targets import TargetSpec, TargetStore, decode_maps
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.loading import load_run

SHARES = ("pointing", "mass_in_mask", "area")


def test_scores_of_an_lfi_run(run_of: dict[str, Path], tiny_val_targets: Path, scenes_root: Path) -> None:
    run = run_of["lfi"]
    scores = evaluate_run(run, targets=tiny_val_targets, device="cpu")
    assert scores == json.loads((run / "scores.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert scores["map_seen"] == pytest.approx(summary["map_seen"])
    assert scores["map_heldout"] == pytest.approx(summary["map_heldout"])
    assert set(scores["map_per_domain"]) == {"colour", "grey", "outline", "photo"}
    assert scores["map_per_domain"]["photo"] == scores["map_heldout"]
    assert all(0 <= value <= 1 for value in scores["map_per_domain"].values())

    store = TargetStore.open(tiny_val_targets)
    words = grounded_words(store, read_dataset("scenes", scenes_root, "val"))
    (teacher,) = teacher_grounding(store, words)
    assert scores["teacher"]["pointing"] == teacher.pointing
    assert scores["area"] == scores["teacher"]["area"] == teacher.area
    assert 0 < scores["area"] < 0.5
    assert [tap["index"] for tap in scores["taps"]] == [0, 1, 2]
    for tap in scores["taps"]:
        assert all(0 <= tap[name] <= 1 for name in SHARES)
        assert tap["count"] == len(words)
        assert tap["area"] == scores["area"]


def test_the_students_maps_are_those_of_its_queries(
    run_of: dict[str, Path], tiny_val_targets: Path, scenes_root: Path
) -> None:
    """Recomputed one sample at a time, straight from the student."""
    run = run_of["lfi"]
    scores = evaluate_run(run, targets=tiny_val_targets, gallery=0, device="cpu")
    student, store = load_run(run, device="cpu").student, TargetStore.open(tiny_val_targets)
    dataset = read_dataset("scenes", scenes_root, "val")
    words, images = grounded_words(store, dataset), PlainImages(dataset, [(64, 64)])
    embeddings = torch.from_numpy(store.vocabulary.embeddings).float()
    per_tap: list[list[torch.Tensor]] = [[], [], []]
    assert student.queries is not None
    for word in words:
        ids = torch.from_numpy(store.read(word.position).words).long().clamp_min(0)
        with torch.no_grad():
            features = student(images[word.position][0][(64, 64)][None], with_taps=True)
            maps = student.queries.maps(embeddings[ids][None], features.taps)
        for tap, m in enumerate(maps):
            per_tap[tap].append(m[0, word.row].view(4, 4))
    for tap, found in zip(scores["taps"], per_tap, strict=True):
        again = score(found, [word.mask for word in words])
        assert tap["pointing"] == pytest.approx(again.pointing, abs=0.02)  # a tie may fall the other way in a batch
        assert tap["mass_in_mask"] == pytest.approx(again.mass_in_mask, abs=1e-5)


def test_a_run_without_queries_has_no_taps(run_of: dict[str, Path], tiny_val_targets: Path) -> None:
    scores = evaluate_run(run_of["none"], targets=tiny_val_targets, device="cpu")
    assert scores["taps"] == []
    assert scores["teacher"]["count"] > 0


def test_without_targets_only_the_task_is_scored(run_of: dict[str, Path]) -> None:
    scores = evaluate_run(run_of["lfi"], device="cpu")
    assert scores["taps"] == []
    assert scores["teacher"] is None
    assert scores["area"] is None
    assert not (run_of["lfi"] / "gallery.json").exists()
    assert read_run(run_of["lfi"]).scores is not None


def test_the_gallery_may_be_left_out(run_of: dict[str, Path], tiny_val_targets: Path) -> None:
    evaluate_run(run_of["lfi"], targets=tiny_val_targets, gallery=0, device="cpu")
    assert not (run_of["lfi"] / "gallery.json").exists()
    with pytest.raises(ConfigError, match="gallery must be 0 or more, got -1"):
        evaluate_run(run_of["lfi"], targets=tiny_val_targets, gallery=-1, device="cpu")


def test_an_evaluation_is_the_same_twice(run_of: dict[str, Path], tiny_val_targets: Path) -> None:
    first = evaluate_run(run_of["lfi"], targets=tiny_val_targets, device="cpu")
    assert evaluate_run(run_of["lfi"], targets=tiny_val_targets, device="cpu") == first


def test_held_out_training_domains_are_scored_apart(run_of: dict[str, Path]) -> None:
    path = run_of["none"] / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"seen_domains": ["colour"]}))
    scores = evaluate_run(run_of["none"], device="cpu")
    assert scores["map_seen"] == scores["map_per_domain"]["colour"]
    assert scores["map_heldout"] not in (None, scores["map_per_domain"]["photo"])


@pytest.fixture
def with_spec(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Callable[[TargetSpec], TargetSpec]], None]:
    """Make the store at a path answer with a changed spec."""

    def apply(path: Path, change: Callable[[TargetSpec], TargetSpec]) -> None:
        plain = TargetStore.open.__func__  # type: ignore[attr-defined]

        def opened(cls: Any, given: Path, **options: Any) -> TargetStore:
            store: TargetStore = plain(cls, given, **options)
            if Path(given) == path:
                store._spec = change(store._spec)
            return store

        monkeypatch.setattr(TargetStore, "open", classmethod(opened))

    return apply


def test_targets_of_another_teacher_are_refused_by_name(
    run_of: dict[str, Path], tiny_val_targets: Path, with_spec: Callable[..., None]
) -> None:
    with_spec(tiny_val_targets, lambda spec: replace(spec, teacher=replace(spec.teacher, name="other-coca")))
    with pytest.raises(ConfigError, match=r"the teacher of the training targets.*other-coca.*tiny-coca"):
        evaluate_run(run_of["lfi"], targets=tiny_val_targets, device="cpu")
    assert not (run_of["lfi"] / "scores.json").exists()


def test_targets_of_other_classes_are_refused(
    run_of: dict[str, Path], tiny_val_targets: Path, with_spec: Callable[..., None]
) -> None:
    with_spec(tiny_val_targets, lambda spec: replace(spec, dataset=replace(spec.dataset, classes=("cat",))))
    with pytest.raises(ConfigError, match="the classes of the training targets"):
        evaluate_run(run_of["lfi"], targets=tiny_val_targets, device="cpu")


def test_the_training_cache_cannot_stand_in_for_the_validation_cache(
    run_of: dict[str, Path], tiny_targets: Path
) -> None:
    with pytest.raises(DatasetError, match="split val; it holds scenes, split train"):
        evaluate_run(run_of["lfi"], targets=tiny_targets, device="cpu")


def test_what_is_not_a_run_is_refused(run_of: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must be a run directory"):
        evaluate_run(tmp_path / "nowhere", device="cpu")
    shutil.rmtree(run_of["lfi"] / "checkpoints")
    with pytest.raises(RunError, match="must be a checkpoint, found nothing"):
        evaluate_run(run_of["lfi"], device="cpu")


def test_a_run_whose_cache_is_gone_says_so(run_of: dict[str, Path], tmp_path: Path) -> None:
    path = run_of["lfi"] / "config.json"
    record = json.loads(path.read_text())
    record["settings"]["targets"] = str(tmp_path / "gone")
    path.write_text(json.dumps(record))
    with pytest.raises(TargetsError, match="gone"):
        evaluate_run(run_of["lfi"], device="cpu")


def test_words_are_scored_by_their_slots_where_queries_are_learned(
    run_of: dict[str, Path], tiny_val_targets: Path, scenes_root: Path
) -> None:
    """Against a second way: each word's slot by brute force over all assignments, and its map."""
    scores = evaluate_run(run_of["learned"], targets=tiny_val_targets, device="cpu")
    assert scores["slots_matched_by_teacher"]
    loaded, store = load_run(run_of["learned"], device="cpu"), TargetStore.open(tiny_val_targets)
    dataset = read_dataset("scenes", scenes_root, "val")
    student, words = loaded.student, grounded_words(store, dataset)
    assert isinstance(student.queries, LearnedQueries)
    place = {sample.key: i for i, sample in enumerate(dataset.samples)}
    hits: list[list[float]] = [[], [], []]
    for word in words:
        read = store.read_many([word.position])
        teacher = decode_maps(torch.from_numpy(read.maps), torch.from_numpy(read.scale), store.spec.codec.name)[0, 0]
        target = F.avg_pool2d(teacher, 2, divisor_override=1).flatten(1).double()  # 8x8 cells onto the student's 4x4
        present = (target.sum(1) > 0).nonzero()[:, 0].tolist()
        with torch.no_grad():
            image = PlainImages(dataset, [student.size])[place[store.index.keys[word.position]]][0][student.size]
            tokens = student(image[None], with_taps=True).taps
            maps = student.queries.maps(tokens)
            pairs = [block.attention(state, x) for block, state, x in _entering(student.queries, tokens)]
        costs = sum(
            (torch.xlogy(target, target)[:, None] - target[:, None] * p[0].double().log().mean(0)).sum(-1)
            for p in pairs
        )
        cost = costs.numpy()
        best = min(
            itertools.permutations(range(maps[0].shape[1]), len(present)),  # as many slots as words at least
            key=lambda chosen, cost=cost, present=present: cost[present, list(chosen)].sum(),
        )
        slot = best[present.index(word.row)]
        for tap, each in enumerate(maps):
            hits[tap].append(float(peaks_in_mask(each[0, slot].view(1, 4, 4), word.mask[None])))
    assert [tap["pointing"] for tap in scores["taps"]] == pytest.approx([np.mean(each) for each in hits])


def _entering(queries: LearnedQueries, tokens: list[Tensor]) -> Iterator[tuple[Any, Tensor, Tensor]]:
    state = queries.slots.expand(1, -1, -1)
    for block, x in zip(queries.blocks, tokens, strict=True):
        yield block, state, x
        state = block(state, x)[0]


def test_best_weights_and_moved_images_on_request(
    run_of: dict[str, Path], scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of["lfi"]
    moved = Path(shutil.copytree(scenes_root, tmp_path / "moved"))
    roots: list[Path] = []
    read = images.read_bytes
    monkeypatch.setattr(images, "read_bytes", lambda root, path: (roots.append(root), read(root, path))[1])
    best = evaluate_run(run, data_root=moved, weights="best", device="cpu")
    assert best["weights"] == "best"
    assert set(roots) == {moved}
    weights = load_file(run / "checkpoints/best.safetensors")
    save_file({name: torch.zeros_like(value) for name, value in weights.items()}, run / "checkpoints/best.safetensors")
    assert evaluate_run(run, weights="best", device="cpu")["map_seen"] != best["map_seen"]
    assert evaluate_run(run, device="cpu")["map_seen"] == best["map_seen"]

"""Presence logits of images of a cache, however the queries are cut."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lfi_pipeline.core.errors import CorruptTargetsError, ImageReadError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.evaluation import zero_shot as presence
from lfi_pipeline.evaluation.zero_shot import presence_logits
from lfi_pipeline.students import Supervision
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.learner import load_run


def test_they_are_those_of_the_student_whatever_is_put_at_once(
    presence_run: Path, tiny_val_targets: Path, scenes_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, store = load_run(presence_run, device="cpu"), TargetStore.open(tiny_val_targets)
    words = torch.from_numpy(store.vocabulary.embeddings[:7]).float()
    positions = store.usable[[5, 2, 11]]
    one_by_one = presence_logits(loaded.student, words, store, positions, at_once=1)
    images = PlainImages(read_dataset("scenes", scenes_root, "val"), [(64, 64)])
    for row, position in enumerate(positions.tolist()):
        with torch.no_grad():
            features = loaded.student(images[position][0][(64, 64)][None], Supervision(words[None]))
            assert features.interaction is not None
            expected = loaded.student.queries.presence_scores(features.interaction)[0]  # type: ignore[union-attr]
        assert torch.allclose(one_by_one[row], expected, atol=1e-5)
    assert one_by_one.std() > 0
    assert torch.allclose(one_by_one, presence_logits(loaded.student, words, store, positions), atol=1e-5)
    for at_once in (3, 100):
        again = presence_logits(loaded.student, words, store, positions, at_once=at_once)
        assert torch.allclose(one_by_one, again, atol=1e-5)
    seen: list[int] = []
    forward = type(loaded.student.queries).forward
    monkeypatch.setattr(presence, "_AT_ONCE", 3 * 2 * 32 * 2)  # images x heads x channels, for two queries
    monkeypatch.setattr(
        type(loaded.student.queries), "forward", lambda s, w, *rest: (seen.append(w.shape[1]), forward(s, w, *rest))[1]
    )
    assert torch.allclose(one_by_one, presence_logits(loaded.student, words, store, positions), atol=1e-5)
    assert seen == [2, 2, 2, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_not_the_teachers_is_refused(
    presence_run: Path, tiny_val_targets: Path, scenes_root: Path, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(scenes_root / "val", tmp_path / "val")
    store = TargetStore.open(tiny_val_targets, data_root=tmp_path)
    student = load_run(presence_run, device="cpu").student
    words = torch.from_numpy(store.vocabulary.embeddings[:2]).float()
    changed = tmp_path / store.index.paths[3]
    changed.write_bytes((tmp_path / store.index.paths[4]).read_bytes())
    with pytest.raises(CorruptTargetsError, match="not the image that the teacher saw"):
        presence_logits(student, words, store, store.usable, workers=workers)
    changed.unlink()
    with pytest.raises(ImageReadError):
        presence_logits(student, words, store, store.usable, workers=workers)

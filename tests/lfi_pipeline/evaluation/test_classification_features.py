"""Features of a frozen student: of which images, in which order, and what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lfi_pipeline.data import read_dataset
from lfi_pipeline.evaluation import classification as module
from lfi_pipeline.evaluation.classification import frozen_features
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.learner import load_run


@pytest.mark.parametrize("kind", ["none", "lfi"])
def test_features_are_what_the_student_pools_of_each_image(
    run_of: dict[str, Path], scenes_root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = load_run(run_of[kind], device="cpu").student
    dataset = read_dataset("scenes", scenes_root, "val")
    images, positions = PlainImages(dataset, [student.size]), [5, 0, 7, 3]
    monkeypatch.setattr(module, "_BATCH", 3)
    found = frozen_features(student, dataset, positions)
    for row, position in enumerate(positions):
        views, labels, _ = images[position]
        with torch.no_grad():
            own = student(views[student.size][None])
        torch.testing.assert_close(found.pooled[row], own.pooled[0], atol=1e-5, rtol=1e-4)
        assert found.logits is not None
        torch.testing.assert_close(found.logits[row], own.logits[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(found.labels[row], labels.bool())
    assert found.read.all()
    assert not found.pooled.requires_grad
    assert len(frozen_features(student, dataset).pooled) == len(dataset)
    with pytest.raises(ValueError, match="must be an image"):
        frozen_features(student, dataset, [])

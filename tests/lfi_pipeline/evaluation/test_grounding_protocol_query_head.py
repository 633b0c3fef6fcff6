"""Students with a query head under the protocols that others are scored by."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lfi_pipeline.evaluation import EvaluationConfig
from lfi_pipeline.evaluation.grounding_protocol import GroundingConfig, grounding
from lfi_pipeline.evaluation.maps import class_maps
from lfi_pipeline.evaluation.zero_shot import ZeroShotConfig, presence_logits, zero_shot
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.learner import load_run
from tests.lfi_pipeline.evaluation.conftest import _trained

CPU = EvaluationConfig(device="cpu")


@pytest.fixture(scope="session")
def text_run(tiny_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the readout `text`; read only."""
    out = tmp_path_factory.mktemp("text-head") / "run"
    return _trained(tiny_targets, out, "lfi", head="queries", readout="text")


def test_the_readout_text_scores_any_class_by_its_name(
    text_run: Path, tiny_val_targets: Path, pacs_targets: Path
) -> None:
    assert 0 <= zero_shot(text_run, CPU, ZeroShotConfig(targets=tiny_val_targets)).scores["map"] <= 1
    other = zero_shot(text_run, CPU, ZeroShotConfig(targets=pacs_targets))
    assert other.details["trained_on"]["labelled_classes"] == 5
    student, store = load_run(text_run, device="cpu").student, TargetStore.open(tiny_val_targets)
    assert student.query_head is not None
    found = presence_logits(student, student.query_head.classes, store, store.usable, at_once=7)
    with torch.no_grad():
        from lfi_pipeline.evaluation.zero_shot import CachedImages

        images = CachedImages(store, store.usable, student.size)
        pixels = torch.stack([image for i in range(len(images)) if isinstance(image := images[i], torch.Tensor)])
        torch.testing.assert_close(found, student(pixels).logits, atol=1e-4, rtol=1e-4)


def test_its_maps_of_words_and_classes_are_scored(text_run: Path, tiny_val_targets: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(text_run, tmp_path / "run"))
    result = grounding(run, CPU, GroundingConfig(targets=tiny_val_targets))
    assert len(result.details["taps"]) == 3
    assert result.scores["pointing"] == result.details["answers"]["pointing"]
    assert result.details["cam_missing"] is None
    assert 0 <= result.scores["cam_pointing"] <= 1


def test_the_gradient_of_its_logits_is_a_class_map(text_run: Path) -> None:
    student = load_run(text_run, device="cpu").student
    for block in student.queries.blocks:  # type: ignore[union-attr]
        torch.nn.init.normal_(block.w_o)
    images = torch.randint(0, 256, (2, 3, *student.size), dtype=torch.uint8)
    maps = class_maps(student, images, torch.tensor([0, 1]), torch.tensor([3, 5]))
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2))

"""Hours of a recipe: how a few measured images and steps become those of all runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lfi_pipeline.benchmarks.training_step import StepTrial
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.evaluation.config import DetectionConfig
from lfi_pipeline.recipes import Place, hours, load_recipe
from lfi_pipeline.recipes.commands import Prepared, prepare
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.teachers.config import PlanConfig
from lfi_pipeline.teachers.estimate import Trial, extrapolated
from lfi_pipeline.training.config import DataConfig, TrainConfig
from tests.lfi_pipeline.data import layouts

TEACHER_SECONDS, TEACHER_OPERATIONS = 2.0, 9e9
STEP_SECONDS, STEP_OPERATIONS = 0.5, 3e9
DETECTOR_SECONDS, DETECTOR_OPERATIONS = 7.0, 1e12
RATE = 312e12 * 0.1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let trials take the seconds above, and keep what they are asked to try."""
    asked: list[Any] = []

    def estimate(config: PlanConfig) -> Any:
        asked.append(config)
        trial = Trial(
            teacher_name="x", kind="x", precision="fp32", device="cpu", images=1, quarantined=0, words=1,
            bytes_per_image=1.0, waiting=0.0, teacher=TEACHER_SECONDS, writing=0.0, captioning=0.0, other=0.0,
            operations=TEACHER_OPERATIONS,
        )  # fmt: skip
        return extrapolated(trial, config, images=1, disk=Path(), free=10)

    def time_training(config: TrainConfig, **options: Any) -> StepTrial:
        asked.append(config)
        return StepTrial(
            student=config.student.name, size=(1, 1), objective="lfi", precision="fp32", device="cpu",
            batch_size=options["batch_size"], seconds=STEP_SECONDS, operations=STEP_OPERATIONS, parameters=1,
        )  # fmt: skip

    def time_detection(student: StudentConfig, config: DetectionConfig, **options: Any) -> StepTrial:
        asked.append((student, config, options))
        return replace(
            time_training(TrainConfig(data=DataConfig(targets=Path()), student=student), batch_size=1),
            seconds=DETECTOR_SECONDS,
            operations=DETECTOR_OPERATIONS,
        )

    monkeypatch.setattr(hours, "time_detection", time_detection)
    monkeypatch.setattr(hours, "estimate", estimate)
    monkeypatch.setattr(hours, "time_training", time_training)
    return asked


def planned(recipe: str, root: Path, tmp_path: Path, **changes: Any) -> tuple[Prepared, hours.RecipePlan]:
    prepared = prepare(load_recipe(recipe, **changes), Place(data_root=root, out=tmp_path / "out", device="cpu"))
    return prepared, hours.plan_recipe(prepared)


def test_hours_are_those_of_every_view_epoch_and_score(asked: list[Any], tmp_path: Path) -> None:
    prepared, plan = planned("tiny-imagenet", layouts.make_tiny_imagenet(tmp_path / "data", per_class=4), tmp_path)
    assert asked[0].extract.teacher == "coca_ViT-L-14:random"  # no weights are needed to tell a time
    train, val, runs, epochs = 12, 3, 15, 100
    assert plan.runs == runs == len(prepared.runs)
    images = train + val / 2  # two views and one
    passes = runs * epochs * (train + val / 3)
    assert plan.here.extraction * 3600 == pytest.approx(images * TEACHER_SECONDS)
    assert plan.here.training * 3600 == pytest.approx(passes * STEP_SECONDS)
    assert plan.estimated is not None
    assert plan.estimated.extraction * 3600 == pytest.approx(images * TEACHER_OPERATIONS / RATE)
    assert plan.estimated.training * 3600 == pytest.approx(passes * STEP_OPERATIONS / RATE)
    assert plan.published is not None
    assert plan.published.extraction * 3600 == pytest.approx((100_000 + 10_000 / 2) * TEACHER_OPERATIONS / RATE)
    published = runs * epochs * (100_000 + 10_000 / 3) * STEP_OPERATIONS / RATE
    assert plan.published.training * 3600 == pytest.approx(published)


def test_a_budget_of_steps_is_the_same_work_at_any_size(asked: list[Any], tmp_path: Path) -> None:
    _, plan = planned("pacs", layouts.make_pacs(tmp_path / "data"), tmp_path)
    assert plan.published is not None
    work = 60 * 5000 * 96 * STEP_OPERATIONS / RATE / 3600
    assert work < plan.published.training < 1.1 * work  # and the scores on the validation images
    assert len(asked) == 2  # one student, tried once for all 60 runs


def test_nothing_is_estimated_of_a_trial(asked: list[Any], tmp_path: Path) -> None:
    _, plan = planned("pacs", layouts.make_pacs(tmp_path / "data"), tmp_path, small=True)
    assert asked[0].extract.teacher == "scenes-coca"
    assert (plan.estimated, plan.published) == (None, None)
    assert plan.here.total > 0


def test_the_fine_tuning_of_detectors_is_most_of_coco(asked: list[Any], tmp_path: Path) -> None:
    prepared, plan = planned("coco", layouts.make_coco(tmp_path / "data", train=4, val=2), tmp_path)
    (tuning,) = plan.detectors
    runs = len(prepared.runs)
    images = runs * 90_000 * 16
    assert (tuning.runs, tuning.iterations, tuning.batch_size, tuning.images) == (runs, 90_000, 16, images)
    student, config, options = next(each for each in asked if isinstance(each, tuple))
    assert (student.name, config.image_size, config.detection_width) == ("resnet50", 1024, 256)
    assert options["classes"] == len(prepared.train.classes)
    assert plan.here.detection * 3600 == pytest.approx(images * DETECTOR_SECONDS)
    assert plan.estimated is not None
    assert plan.published is not None
    assert plan.estimated.detection * 3600 == pytest.approx(images * DETECTOR_OPERATIONS / RATE)
    assert plan.published.detection == plan.estimated.detection  # a budget of steps, whatever the images
    assert plan.published.total > plan.published.detection > plan.published.total / 2
    parts = (plan.here.extraction, plan.here.training, plan.here.detection)
    assert plan.here.total == pytest.approx(sum(parts))
    assert plan.uncounted == ("classification", "grounding", "zero-shot", "convergence")


def test_without_the_protocol_there_is_no_detector(asked: list[Any], tmp_path: Path) -> None:
    _, plan = planned("pacs", layouts.make_pacs(tmp_path / "data"), tmp_path)
    assert plan.detectors == ()
    assert plan.here.detection == 0
    assert plan.uncounted == ("cross-domain", "classification", "convergence")


def detector(width: int = 16, *, size: int = 64, batch_size: int = 2) -> StepTrial:
    kwargs = {"depth": 2, "embed_dim": 32, "num_heads": 2}
    student = StudentConfig(name="vit_tiny_patch16_224", image_size=32, patch_size=16, kwargs=kwargs)
    config = DetectionConfig(detection_width=width, class_agnostic=True)
    return hours.time_detection(
        student, config, size=size, classes=80, device=torch.device("cpu"), batch_size=batch_size
    )


def test_a_step_of_the_real_detector_is_counted(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = detector()
    assert torch.equal(before, torch.get_rng_state())
    assert (one.size, one.objective, one.precision) == ((64, 64), "detection", "fp32")
    regions, objects, width = 64, 16, 16  # of an image of 64 pixels
    box_head = regions * 2 * (7 * 7 * width * 4 * width + (4 * width) ** 2)
    masks = objects * 4 * 2 * 9 * width**2 * 7**2  # four convolutions of 7 x 7 cells
    least = 2 * 3 * (box_head / 2 + masks) / 2  # forward, and twice as much back; half of the regions may be missing
    assert least < one.operations
    assert detector(batch_size=3).operations == pytest.approx(one.operations, rel=0.1)  # of an image
    assert detector(32).operations > 2 * one.operations
    assert detector(size=128).operations > 2 * one.operations
    assert one.seconds > 0


def test_a_detector_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size and steps must be 1 or more, got 0"):
        detector(batch_size=0)
    with pytest.raises(ConfigError, match="a multiple of the backbone"):
        detector(size=70)

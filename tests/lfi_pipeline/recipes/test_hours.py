"""Hours of a recipe: how a few measured images and steps become those of all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.benchmarks.training_step import StepTrial
from lfi_pipeline.recipes import Place, hours, load_recipe
from lfi_pipeline.recipes.commands import Prepared, prepare
from lfi_pipeline.teachers.config import PlanConfig
from lfi_pipeline.teachers.estimate import Trial, extrapolated
from lfi_pipeline.training.config import TrainConfig
from tests.lfi_pipeline.data import layouts

TEACHER_SECONDS, TEACHER_OPERATIONS = 2.0, 9e9
STEP_SECONDS, STEP_OPERATIONS = 0.5, 3e9
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

"""The learning rate at the steps where it turns."""

from __future__ import annotations

import math

import pytest
import torch

from lfi_pipeline.training import OptimizerConfig
from lfi_pipeline.training.trainer import make_schedule

STEPS, PER_EPOCH, PEAK = 40, 4, 0.8


def rates(schedule: str, warmup_epochs: int = 1, steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    config = OptimizerConfig(lr=PEAK, schedule=schedule, warmup_epochs=warmup_epochs)
    made = make_schedule(config, optimizer, steps, PER_EPOCH)
    found = []
    for step in range(steps):
        made.step_update(step)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_it_rises_in_the_warm_up_and_then_follows_its_curve(schedule: str) -> None:
    found = rates(schedule)
    assert found[0] == pytest.approx(0.01 * PEAK)
    assert found[: PER_EPOCH + 1] == sorted(found[: PER_EPOCH + 1])
    assert found[2] == pytest.approx(PEAK * (0.01 + 0.99 * 2 / PER_EPOCH))
    for step in range(PER_EPOCH, STEPS):
        left = {
            "cosine": (1 + math.cos(math.pi * step / STEPS)) / 2,
            "linear": 1 - step / STEPS,
            "constant": 1,
        }[schedule]
        assert found[step] == pytest.approx(PEAK * left), step


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_without_warm_up_the_first_step_is_at_the_peak(schedule: str) -> None:
    assert rates(schedule, warmup_epochs=0)[0] == pytest.approx(PEAK)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_run_of_one_step_and_one_of_warm_up_alone_train(schedule: str) -> None:
    assert rates(schedule, steps=1) == pytest.approx([PEAK])
    assert all(rate > 0 for rate in rates(schedule, warmup_epochs=99, steps=6))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_resume_finds_the_same_rate(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    config = OptimizerConfig(lr=PEAK, schedule=schedule)
    make_schedule(config, optimizer, STEPS, PER_EPOCH).step_update(17)
    assert optimizer.param_groups[0]["lr"] == rates(schedule)[17]

"""What counts as ruin."""

from __future__ import annotations

import math

import pytest

from lfi_pipeline.training.monitor import LossGuard


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(loss: float) -> None:
    assert str(LossGuard().check(loss, 1.0)).startswith("the loss is")


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite(norm: float) -> None:
    assert str(LossGuard().check(0.5, norm)).startswith("the norm of the gradient is")


def test_a_hundred_times_the_median_is_an_explosion_once_enough_is_known() -> None:
    guard = LossGuard()
    assert guard.check(1e6, 1.0) is None  # the first steps of a run may be anything
    for _ in range(19):
        assert guard.check(1.0, 1.0) is None
    assert guard.check(100.0, 1.0) is None
    assert "median of 1" in str(guard.check(100.1, 1.0))
    assert guard.check(1.0, 1.0) is None  # what was refused is not remembered


def test_a_loss_of_zero_explodes_into_nothing() -> None:
    guard = LossGuard()
    for _ in range(30):
        assert guard.check(0.0, 0.0) is None
    assert guard.check(1.0, 1.0) is None


def test_a_resume_goes_on_with_the_losses_it_remembers() -> None:
    before = LossGuard()
    for _ in range(20):
        assert before.check(1.0, 1.0) is None
    assert LossGuard(before.recent).check(101.0, 1.0) is not None
    assert LossGuard().check(101.0, 1.0) is None

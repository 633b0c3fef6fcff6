"""A trial of a planned run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lfi_pipeline.benchmarks.training_step import StepTrial, time_training
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.training.config import DataConfig, TrainConfig

DEPTH, WIDTH, SIZE, PATCH = 3, 64, 64, 16


def trial(batch_size: int, *, depth: int = DEPTH, objective: str = "none", steps: int = 1) -> StepTrial:
    kwargs = {"depth": depth, "embed_dim": WIDTH, "num_heads": 2}
    student = StudentConfig(name="vit_tiny_patch16_224", image_size=SIZE, patch_size=PATCH, kwargs=kwargs)
    data = DataConfig(targets=Path("no such cache"), hold_out=("no such domain",), batch_size=128)
    config = TrainConfig(data=data, student=student, head="linear", objective=objective)
    return time_training(
        config, device=torch.device("cpu"), batch_size=batch_size, steps=steps, maps_shape=(1, 4, 4, 4)
    )


def test_operations_are_those_of_the_student_forward_and_backward() -> None:
    found = trial(2)
    tokens = (SIZE // PATCH) ** 2 + 1
    matrices = DEPTH * 12 * WIDTH * WIDTH * tokens
    attention = DEPTH * 2 * tokens * tokens * WIDTH
    patches = (tokens - 1) * 3 * PATCH * PATCH * WIDTH
    least, most = 3 * 2 * (matrices + attention) + 2 * 2 * patches, 3 * 2 * (matrices + attention + patches)
    assert least <= found.operations <= 1.1 * most  # the head and the queries' share is small
    assert found.seconds > 0
    assert (found.student, found.size, found.objective, found.device) == (
        *("vit_tiny_patch16_224", (SIZE, SIZE), "none", "cpu"),
    )


def test_operations_are_per_image_and_grow_with_the_student_and_the_objective() -> None:
    two = trial(2)
    assert trial(4).operations == pytest.approx(two.operations, rel=0.01)
    assert trial(2, depth=6).operations > 1.8 * two.operations
    assert trial(2, objective="lfi").operations > two.operations


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size and steps must be 1 or more, got 0"):
        trial(0)

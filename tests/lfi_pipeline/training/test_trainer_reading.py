"""Where reading a number would wait for a device, steps are read together: the weights and the watch stay the same."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.training import TrainConfig, trainer
from lfi_pipeline.training.checkpoint import load_state
from lfi_pipeline.training.learner import Learner
from lfi_pipeline.training.run_dir import STATE
from lfi_pipeline.training.trainer import Trainer
from tests.lfi_pipeline.training.running import MACHINE, assert_same_run, train_one

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def device_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat this CPU as a device that is not read in every step."""
    monkeypatch.setattr(trainer, "AT_ONCE", ())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what of this library's training takes numbers from a tensor, by the function that does."""
    found: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            if frame.f_globals.get("__name__", "").startswith(
                ("lfi_pipeline.training.trainer", "lfi_pipeline.training.loop")
            ):
                found[frame.f_code.co_name] += 1
            return original(self, *args, **kwargs)

        return read

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    return found


@pytest.mark.usefixtures("device_like")
def test_numbers_are_read_where_they_are_logged_and_nowhere_else(
    make_config: MakeConfig, tmp_path: Path, reads: Counter[str]
) -> None:
    """24 steps an epoch are logged 4 times: 8 readings of 48 steps, not 48."""
    train_one(make_config(objective="lfi", weight={"lfi": 0.05}, batch_size=1, epochs=2), tmp_path / "run")
    reads.pop("__init__", None)  # positions, before the first step
    assert reads == {"read": 8}
    reads.clear()
    train_one(make_config(objective="lfi", batch_size=1, epochs=2), tmp_path / "relative")
    reads.pop("__init__", None)
    assert reads == {"read": 8 + 3}  # gradients are measured at steps 0, 20 and 40, and weigh the next one


def test_the_weights_are_those_of_reading_every_step(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(objective="lfi+embedding", ema=0.9, epochs=3, batch_size=2)
    train_one(config, tmp_path / "at-once")
    monkeypatch.setattr(trainer, "AT_ONCE", ())
    train_one(config, tmp_path / "together")
    assert_same_run(tmp_path / "at-once", tmp_path / "together")


@pytest.mark.usefixtures("device_like")
@pytest.mark.parametrize("checkpoint_minutes", [0.0, 10.0])
def test_a_ruined_step_is_found_and_nothing_of_it_is_kept(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_minutes: float
) -> None:
    forward, steps = Learner.forward, iter(range(1000))

    def poisoned(self: Learner, *args: Any) -> Any:
        losses = forward(self, *args)
        return {n: v * math.nan for n, v in losses.items()} if next(steps) == 26 else losses

    monkeypatch.setattr(Learner, "forward", poisoned)
    config = make_config(objective="none", batch_size=1)  # 24 steps an epoch, read every 6
    with pytest.raises(RunError, match=r"stopped at step 27, and nothing of that step is kept: the loss is nan"):
        train_one(config, tmp_path / "run", replace(MACHINE, checkpoint_minutes=checkpoint_minutes))
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["step"] == 27
    assert len(failure["keys"]) == 1
    state = load_state(tmp_path / "run" / STATE)
    assert state["step"] == 24
    assert all(value.isfinite().all() for value in state["learner"].values())


@pytest.mark.usefixtures("device_like")
def test_a_stop_between_readings_keeps_every_step(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Trainer.train_step

    def stops(self: Trainer, *args: Any) -> dict[str, float]:
        if self.step == 8:
            import os

            os.kill(os.getpid(), 2)
        return take(self, *args)

    config = make_config(objective="none", batch_size=1, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stops)
        with pytest.raises(KeyboardInterrupt):
            train_one(config, tmp_path / "run")
    assert load_state(tmp_path / "run" / STATE)["step"] == 9
    train_one(config, tmp_path / "run")
    train_one(config, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")

"""No step waits for its device: what would make it wait is looked for among all operations of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.training import TrainConfig, trainer
from lfi_pipeline.training.loop import _Loop
from lfi_pipeline.training.monitor import GradientBalance
from lfi_pipeline.training.trainer import Trainer
from tests.lfi_pipeline.training.running import train_one
from tests.waiting import watched

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """What waits in each step of a training whose device is not read in every step, and which measures no gradients."""
    counts: list[Counter[str]] = []
    take, bring = Trainer.train_step, _Loop._piece
    monkeypatch.setattr(trainer, "AT_ONCE", ())
    monkeypatch.setattr(GradientBalance, "due", lambda self, step: False)

    def watched_step(self: Trainer, *args: Any) -> Any:
        with watched() as found:
            result = take(self, *args)
        counts.append(found)
        return result

    def watched_piece(self: _Loop, *args: Any) -> Any:
        with watched() as found:
            result = bring(self, *args)
        assert not found, found
        return result

    monkeypatch.setattr(Trainer, "train_step", watched_step)
    monkeypatch.setattr(_Loop, "_piece", watched_piece)
    return counts


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "none", "head": "linear"},
        {"objective": "lfi+embedding+logits+presence", "head": "queries", "ema": 0.9},
        {"objective": "lfi+presence", "head": "linear", "mixup": 0.5, "cutmix": 0.5, "mix": "maps"},
        {"objective": "attention", "head": "linear", "maps": "uniform", "multi_label_loss": "asl"},
    ],
    ids=lambda changes: f"{changes['head']} {changes['objective']}",
)
def test_a_step_waits_only_where_its_numbers_are_read(
    make_config: MakeConfig, tmp_path: Path, steps: list[Counter[str]], changes: dict[str, Any]
) -> None:
    """12 steps, logged 4 times: one reading in the third, and nothing in the two before."""
    train_one(make_config(batch_size=2, epochs=1, precision="bf16", **changes), tmp_path / "run")
    assert len(steps) == 12
    for number, found in enumerate(steps, 1):
        reads = {"tolist in lfi_pipeline.training.trainer.read": 1} if number % 3 == 0 else {}
        assert dict(found) == reads, f"step {number}"

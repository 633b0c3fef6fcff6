"""No step waits for its device: what would make it wait is looked for among all operations of a step."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lfi_pipeline.training import TrainConfig, trainer
from lfi_pipeline.training.loop import _Loop
from lfi_pipeline.training.monitor import GradientBalance
from lfi_pipeline.training.trainer import Trainer
from tests.lfi_pipeline.training.running import train_one

MakeConfig = Callable[..., TrainConfig]

WAITS = {  # operators whose result has a size or a value that the host needs to know
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "is_nonzero", "item",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts what would wait for a device, by operator and by the line of this project that asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        picks = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITS or picks or repeats:
            self.add(name)
        return func(*args, **(kwargs or {}))

    def add(self, name: str) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None and not frame.f_globals.get("__name__", "").startswith("lfi_"):
            frame = frame.f_back
        self.counts[f"{name} in {frame.f_globals.get('__name__')}.{frame.f_code.co_name}"] += 1


@contextmanager
def watched() -> Iterator[Counter[str]]:
    """Yield the counts of what would wait inside; reading a tensor without an operator counts as well."""
    waits = Waits()
    with pytest.MonkeyPatch.context() as patch, waits:
        for name in ("tolist", "cpu", "numpy"):
            original = getattr(torch.Tensor, name)
            patch.setattr(
                torch.Tensor,
                name,
                lambda self, *args, original=original, name=name, **kw: (waits.add(name), original(self, *args, **kw))[
                    1
                ],
            )
        yield waits.counts


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


def test_what_waits_is_seen() -> None:
    """Every way in which a step once waited, or might."""
    flags, numbers = torch.tensor([True, False]), torch.arange(2.0)
    for wait in (
        lambda: numbers[flags],
        lambda: bool(flags.any()),
        lambda: float(numbers[0]),
        lambda: flags.nonzero(),
        lambda: numbers.tolist(),
        lambda: numbers.cpu(),
        lambda: numbers.masked_select(flags),
        lambda: numbers.unique(),
        lambda: numbers.index_put_((flags,), torch.zeros(1)),
        lambda: torch.equal(numbers, numbers),
    ):
        with watched() as found:
            wait()
        assert found, "not seen"
    with watched() as found:
        torch.where(flags, numbers, 0.0).sum().add_(numbers[torch.tensor([1])].sum())
    assert not found

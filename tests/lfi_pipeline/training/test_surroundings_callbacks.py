"""A user's callbacks hear of every moment, and what they raise loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students import Student
from lfi_pipeline.training import Callback, TrainConfig, train
from lfi_pipeline.training.checkpoint import load_state
from lfi_pipeline.training.run_dir import STATE, SUMMARY
from lfi_pipeline.training.trainer import MicroBatch, Trainer
from tests.lfi_pipeline.training.running import MACHINE, assert_same_run, train_lines, train_one

MakeConfig = Callable[..., TrainConfig]


class Noted(Callback):
    """Writes down what it hears; raises at one moment."""

    def __init__(self, bad: str = "") -> None:
        self.heard: list[str] = []
        self.losses: list[float] = []
        self.bad = bad

    def _note(self, moment: str) -> None:
        self.heard.append(moment)
        if moment == self.bad:
            raise RuntimeError("mine")

    def on_train_start(self, trainer: Trainer, student: Student) -> None:
        assert isinstance(student, Student)
        self._note(f"start {trainer.step} of {trainer.total_steps}")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        student: Student,
        outputs: Mapping[str, Tensor],
        batch: Sequence[MicroBatch],
        batch_idx: int,
    ) -> None:
        self.losses.append(float(outputs["total"]))
        assert batch[0].batch.images[student.size].dtype == torch.uint8
        self._note(f"batch {batch_idx} after {trainer.step}")

    def on_validation_end(self, trainer: Trainer, student: Student) -> None:
        assert "map_seen" in trainer.scores
        self._note(f"validated {trainer.step}")

    def on_train_end(self, trainer: Trainer, student: Student) -> None:
        assert (trainer.out / SUMMARY).is_file()
        self._note("end")


EPOCHS = [
    "start 0 of 6", "batch 0 after 1", "batch 1 after 2", "batch 2 after 3", "validated 3",
    "batch 0 after 4", "batch 1 after 5", "batch 2 after 6", "validated 6", "end",
]  # fmt: skip


def test_a_run_computes_with_the_threads_it_is_given(make_config: MakeConfig, tmp_path: Path) -> None:
    class Threads(Callback):
        seen = 0

        def on_train_start(self, trainer: Trainer, student: Student) -> None:
            self.seen = torch.get_num_threads()

    before, threads = torch.get_num_threads(), Threads()
    train([(make_config(), tmp_path / "run")], replace(MACHINE, threads=before + 1), callbacks=[threads])
    assert (threads.seen, torch.get_num_threads()) == (before + 1, before)


def test_every_moment_is_heard_and_nothing_is_changed(make_config: MakeConfig, tmp_path: Path) -> None:
    noted = Noted()
    train([(make_config(), tmp_path / "run")], MACHINE, callbacks=[noted])
    assert noted.heard == EPOCHS
    assert noted.losses == pytest.approx([line["loss"] for line in train_lines(tmp_path / "run")])
    train_one(make_config(), tmp_path / "plain")
    assert_same_run(tmp_path / "run", tmp_path / "plain")
    again = Noted()
    train([(make_config(), tmp_path / "run")], MACHINE, callbacks=[again])
    assert again.heard == []  # a finished run is not trained


@pytest.mark.parametrize("moment", ["start 0 of 6", "batch 1 after 2", "validated 3", "batch 2 after 6", "validated 6"])
def test_what_a_callback_raises_stops_the_run_with_a_checkpoint(
    make_config: MakeConfig, tmp_path: Path, moment: str
) -> None:
    bad = Noted(bad=moment)
    with pytest.raises(RuntimeError, match="mine") as raised:
        train([(make_config(), tmp_path / "run")], MACHINE, callbacks=[bad])
    assert raised.value.__notes__[0].startswith("Raised by Noted.on_")
    assert not (tmp_path / "run" / SUMMARY).exists()
    assert load_state(tmp_path / "run" / STATE)["step"] == sum(each.startswith("batch") for each in bad.heard)
    rest = Noted()
    train([(make_config(), tmp_path / "run")], MACHINE, callbacks=[rest])
    assert [*bad.heard, *rest.heard[1:]] == EPOCHS
    train_one(make_config(), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_an_error_at_the_end_leaves_a_finished_run(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        train([(make_config(epochs=1), tmp_path / "run")], MACHINE, callbacks=[Noted(bad="end")])
    assert (tmp_path / "run" / SUMMARY).is_file()


def test_each_run_of_one_read_is_told_of(make_config: MakeConfig, tmp_path: Path) -> None:
    noted = Noted()
    runs = [(make_config(epochs=1, objective=name), tmp_path / name) for name in ("none", "lfi")]
    train(runs, MACHINE, callbacks=[noted])
    assert sorted(noted.heard) == sorted(2 * [
        "start 0 of 3", "batch 0 after 1", "batch 1 after 2", "batch 2 after 3", "validated 3", "end",
    ])  # fmt: skip


def test_an_object_that_is_no_callback_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    class Half:
        def on_train_start(self, trainer: Any, student: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"but Half lacks on_train_batch_end, on_validation_end, on_train_end"):
        train([(make_config(), tmp_path / "run")], replace(MACHINE), callbacks=[Half()])  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()

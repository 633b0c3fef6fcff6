"""Metrics reach TensorBoard, and what cannot be tracked is refused before a run begins."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from accelerate import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.training.surroundings import Trackers, resolve


@pytest.fixture(autouse=True)
def _one_process() -> None:
    PartialState(cpu=True)


class _Counter:
    """What numbers the event files of a process, from a number of our own on."""

    def __init__(self, first: int) -> None:
        self.next = first

    def get(self) -> int:
        self.next += 1
        return self.next - 1


def scalars(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_metrics_reach_tensorboard(tmp_path: Path) -> None:
    trackers = Trackers(tmp_path, ["tensorboard"], {"seed": 1})
    trackers.log({"loss": 0.5, "map_heldout": None}, step=3)
    trackers.close()
    trackers.close()
    assert scalars(tmp_path, "loss") == [(3, 0.5)]


def test_a_resume_hides_what_was_logged_after_its_step(tmp_path: Path) -> None:
    first = Trackers(tmp_path, ["tensorboard"], {})
    for step in range(1, 6):
        first.log({"loss": step}, step=step)
    first.close()
    second = Trackers(tmp_path, ["tensorboard"], {}, resume_step=3)
    second.log({"loss": 40}, step=4)
    second.close()
    assert scalars(tmp_path, "loss") == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_event_files_of_one_second_are_read_in_the_order_they_were_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the names of two files of one second differ by a counter that is read as text, where "10" sorts before "9"
    monkeypatch.setattr(event_file_writer, "_global_uid", counter := _Counter(9))
    for value in range(3):
        again = Trackers(tmp_path, ["tensorboard"], {}, resume_step=0)
        again.log({"loss": value}, step=1)
        again.close()
    assert counter.next == 12
    assert scalars(tmp_path, "loss") == [(1, 2)]


def test_a_run_that_begins_anew_hides_all_that_was_logged(tmp_path: Path) -> None:
    first = Trackers(tmp_path, ["tensorboard"], {}, resume_step=0)
    for step in range(1, 4):
        first.log({"loss": step}, step=step)
    first.close()
    second = Trackers(tmp_path, ["tensorboard"], {}, resume_step=0)
    second.log({"loss": 40}, step=2)
    second.close()
    assert scalars(tmp_path, "loss") == [(2, 40)]


def test_none_writes_nothing(tmp_path: Path) -> None:
    trackers = Trackers(tmp_path, ["none"], {})
    trackers.log({"loss": 1}, step=1)
    trackers.close()
    assert list(tmp_path.iterdir()) == []


def test_names_are_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
    assert resolve(["tensorboard", "trackio", "tensorboard"]) == ["tensorboard", "trackio"]
    with pytest.raises(ConfigError, match="pip install wandb"):
        resolve(["tensorboard", "wandb"])
    with pytest.raises(ConfigError, match="stand alone"):
        resolve(["none", "tensorboard"])
    with pytest.raises(UnknownNameError, match="tensorboard"):
        resolve(["tensorbord"])

"""A checkpoint is whole, its own, and enough: a resumed optimizer goes on to the same bits."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from lfi_pipeline.core.errors import OutputWriteError, RunError
from lfi_pipeline.training import checkpoint
from lfi_pipeline.training.checkpoint import Retention, load_state, load_weights, save_state, save_weights

STATE = {"step": 3, "model": {"w": torch.arange(6.0).reshape(2, 3)}, "state": {0: {"lr": 0.5}}}


class Training:
    """A tiny run with all that keeps state."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.optimizer = create_optimizer_v2(self.model, opt=name, lr=0.01, weight_decay=0.1)
        self.schedule = CosineLRScheduler(self.optimizer, t_initial=8, warmup_t=2, t_in_epochs=False)
        self.ema = ModelEmaV3(self.model, decay=0.9)

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)
            self.schedule.step_update(step)
            self.model(torch.randn(5, 4)).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.update(self.model, step=step)

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "ema": self.ema}

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


@pytest.mark.parametrize("name", ["adamw", "momentum", "lamb", "adafactor"])
def test_a_resumed_optimizer_goes_on_to_the_same_bits(tmp_path: Path, name: str) -> None:
    straight, halted, resumed = Training(name), Training(name), Training(name)
    straight.steps(0, 6)
    halted.steps(0, 3)
    save_state(tmp_path / "state.safetensors", halted.state(), fingerprint="f")
    torch.manual_seed(99)
    for parameter in resumed.model.parameters():  # nothing of the fresh start may be needed
        nn.init.normal_(parameter)
    resumed.load(load_state(tmp_path / "state.safetensors", fingerprint="f"))
    resumed.steps(3, 6)
    for one, other in [(straight.model, resumed.model), (straight.ema, resumed.ema)]:
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
    assert straight.optimizer.param_groups[0]["lr"] == resumed.optimizer.param_groups[0]["lr"]


def test_a_loaded_state_is_independent_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_state(path, STATE, fingerprint="f")
    before = path.read_bytes()
    loaded = load_state(path)
    loaded["model"]["w"].zero_()
    assert path.read_bytes() == before
    assert list(loaded["state"]) == [0]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = tmp_path / "s.safetensors"
    save_state(path, STATE, fingerprint="f")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if stage == "write":
        monkeypatch.setattr(Path, "open", full)
    else:
        monkeypatch.setattr(os if stage == "fsync" else Path, stage, full)
    with pytest.raises(OutputWriteError, match=r"s\.safetensors: No space left on device.*free space"):
        save_state(path, {"step": 4}, fingerprint="f")
    monkeypatch.undo()
    assert load_state(path)["step"] == 3
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_missing_folder_is_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(OutputWriteError, match="Cannot write"):
        save_state(tmp_path / "none" / "s.safetensors", STATE, fingerprint="f")


def write_for_ever(path: Path, done: Any) -> None:
    for step in itertools.count(1):
        save_state(path, {"step": step, "w": torch.full((300_000,), float(step))}, fingerprint="f")
        done.value = step


def test_a_kill_at_any_moment_leaves_a_whole_state(tmp_path: Path) -> None:
    path, context = tmp_path / "s.safetensors", multiprocessing.get_context("fork")
    for trial in range(6):
        done = context.RawValue("q", 0)
        writer = context.Process(target=write_for_ever, args=(path, done))
        writer.start()
        while not done.value and writer.is_alive():
            time.sleep(0.001)
        time.sleep(0.007 * trial)
        writer.kill()
        writer.join()
        state = load_state(path)
        assert state["step"] >= done.value >= 1
        assert torch.equal(state["w"], torch.full((300_000,), float(state["step"])))
    save_state(path, STATE, fingerprint="f")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_state(path, STATE, fingerprint="f")
    whole = path.read_bytes()
    for position in range(0, len(whole), 5):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            state = load_state(path)
        except RunError:
            continue
        assert torch.equal(state["model"]["w"], STATE["model"]["w"])  # type: ignore[index]  # padding of the header
        assert state["step"] == 3


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "half"])
def test_damage_says_to_delete_the_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s.safetensors"
    save_state(path, STATE, fingerprint="f")
    whole = path.read_bytes()
    kinds = {"truncated": whole[:-1], "garbage": b"\xff" * 90, "empty": b"", "half": whole[: len(whole) // 2]}
    path.write_bytes(kinds[damage])
    with pytest.raises(RunError, match=r"s\.safetensors is damaged.*Delete the file"):
        load_state(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "another kind"),
        ({"format": "pt"}, "another kind"),
        ({"format": checkpoint.FORMAT, "version": "2"}, "version 1, found '2'"),
        ({"format": checkpoint.FORMAT, "version": "1"}, "crc32c"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, metadata: dict[str, str] | None, words: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "s.safetensors", metadata=metadata)
    with pytest.raises(RunError, match=words):
        load_state(tmp_path / "s.safetensors")


def test_a_missing_state_and_one_of_another_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="found nothing"):
        load_state(tmp_path / "s.safetensors")
    save_state(tmp_path / "s.safetensors", STATE, fingerprint="one")
    with pytest.raises(RunError, match="run two, found the state of one"):
        load_state(tmp_path / "s.safetensors", fingerprint="two")


def test_weights_come_back_and_say_their_step(tmp_path: Path) -> None:
    saved, loaded = nn.Linear(3, 2), nn.Linear(3, 2)
    shared = {"weight": saved.weight, "bias": saved.bias}
    save_weights(tmp_path / "w.safetensors", shared, {"step": 4})
    load_weights(tmp_path / "w.safetensors", loaded)
    assert torch.equal(saved.weight, loaded.weight)
    with checkpoint.safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata.pop("crc32c")
    assert metadata == {"step": "4"}


def test_weights_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(RunError, match="Train the run first"):
        load_weights(path, nn.Linear(3, 2))
    save_weights(path, nn.Linear(3, 5).state_dict(), {})
    with pytest.raises(RunError, match="does not fit the Linear"):
        load_weights(path, nn.Linear(3, 2))
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(RunError, match="does not fit the Linear"):
        load_weights(path, nn.Linear(3, 2))


def run_epochs(keeper: Retention, scores: dict[int, float | None]) -> None:
    for epoch, score in scores.items():
        keeper.after_epoch(epoch, score, lambda path, epoch=epoch: path.write_text(str(epoch)))  # type: ignore[misc]


def content(folder: Path) -> dict[str, str]:
    return {path.name.removesuffix(".safetensors"): path.read_text() for path in sorted(folder.iterdir())}


def test_retention_keeps_last_best_and_every_nth(tmp_path: Path) -> None:
    keeper = Retention(tmp_path, every=2)
    run_epochs(keeper, {1: None, 2: 0.5, 3: float("nan"), 4: 0.5, 5: 0.4})
    assert content(tmp_path) == {"best": "2", "epoch-0002": "2", "epoch-0004": "4", "last": "5"}
    assert keeper.state_dict() == {"best_score": 0.5, "best_epoch": 2}


def test_retention_goes_on_from_its_state(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    keeper, resumed = Retention(tmp_path, every=1), Retention(tmp_path)
    run_epochs(keeper, {1: 0.5, 2: 0.1})
    resumed.load_state_dict(keeper.state_dict())
    run_epochs(resumed, {3: 0.4})
    assert content(tmp_path) == {"best": "1", "last": "3", "notes.txt": "mine"}
    run_epochs(resumed, {4: 0.6})
    assert content(tmp_path)["best"] == "4"


def test_retention_drops_epochs_that_a_resume_has_not_reached(tmp_path: Path) -> None:
    run_epochs(Retention(tmp_path, every=1), {1: 0.1, 2: 0.2, 3: 0.3})
    run_epochs(Retention(tmp_path, every=1), {2: 0.2})
    assert sorted(content(tmp_path)) == ["best", "epoch-0001", "epoch-0002", "last"]


@pytest.mark.parametrize(
    "tree",
    [
        "",
        "[]",
        "7",
        '{"dict": [[]]}',
        '{"dict": 3}',
        '{"dict": [[[], 1]]}',
        '{"tensor": "none"}',
        '{"a": 1}',
        "[" * 99_999,
    ],
)
def test_a_tree_that_is_none_is_one_error(tmp_path: Path, tree: str) -> None:
    """Its checksum is right: it was made so."""
    path, tensors = tmp_path / "state.safetensors", {"a": torch.zeros(2)}
    metadata = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "fingerprint": "f", "state": tree}
    metadata["crc32c"] = checkpoint._checksum(tensors, "f", tree)
    path.write_bytes(checkpoint.save(tensors, metadata=metadata))
    with pytest.raises(RunError, match=r"state\.safetensors"):
        load_state(path)

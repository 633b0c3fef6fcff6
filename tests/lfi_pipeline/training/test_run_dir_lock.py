"""One process at a time trains in a directory; death frees it, whatever its children do."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lfi_pipeline.core.errors import RunLockedError
from lfi_pipeline.core.io import is_leftover, temporary
from lfi_pipeline.training import TrainConfig, train
from lfi_pipeline.training.run_dir import CHECKPOINTS, LOCK, RunLock
from tests.lfi_pipeline.training.running import MACHINE, train_one


def held_by_another(run: Path, ready: Path) -> int:
    """Fork a process that keeps `run`, and a child of it that lives on."""
    process = os.fork()
    if process == 0:
        RunLock(run)
        if os.fork() == 0:
            ready.write_text("")
            time.sleep(20)
            os._exit(0)
        time.sleep(20)
        os._exit(0)
    while not ready.exists():
        time.sleep(0.005)
    return process


def test_a_second_process_is_told_who_trains_until_the_first_dies(tmp_path: Path) -> None:
    process = held_by_another(tmp_path / "run", tmp_path / "ready")
    try:
        with pytest.raises(RunLockedError, match=rf"by process {process} on {socket.gethostname()} since \d{{4}}-"):
            RunLock(tmp_path / "run")
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with RunLock(tmp_path / "run"):  # although a child of the dead one lives
        assert f"process {os.getpid()} on" in (tmp_path / "run" / LOCK).read_text()
    assert not (tmp_path / "run").exists()  # nothing was begun in it


def test_within_one_process_too(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"), pytest.raises(RunLockedError, match=f"this process .{os.getpid()}"):
        RunLock(tmp_path / "x" / ".." / "run") if (tmp_path / "x").mkdir() is None else None
    with RunLock(tmp_path / "run"):
        pass


def test_training_holds_it_and_leaves_no_lock(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    process = held_by_another(tmp_path / "run", tmp_path / "ready")
    try:
        with pytest.raises(RunLockedError, match="is being trained by process"):
            train([(make_config(epochs=1), tmp_path / "run")], MACHINE)
        assert not (tmp_path / "run" / "config.json").exists()
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    train_one(make_config(epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()


def test_what_a_killed_process_left_is_removed_with_the_next_start(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / CHECKPOINTS).mkdir(parents=True)
    for name in ("config.json", "summary.json", f"{CHECKPOINTS}/last.safetensors"):
        temporary(run / name).write_bytes(b"half")
    train_one(make_config(epochs=1), run)
    assert not [path for path in run.rglob("*") if is_leftover(path.name)]

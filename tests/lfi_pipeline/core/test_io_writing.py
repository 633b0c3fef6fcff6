"""Files and folders are written whole, leave nothing behind, and equal content is equal bytes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from lfi_pipeline.core import io
from lfi_pipeline.core.errors import OutputWriteError
from lfi_pipeline.core.io import (
    clear_leftovers,
    exchange,
    is_leftover,
    metadata_of,
    new_folder,
    sorted_safetensors,
    temporary,
    write_atomic,
    write_output,
)


def dead_process() -> int:
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    return process


def leftover(path: Path, process: int) -> Path:
    return path.with_name(temporary(path).name.replace(f"-{os.getpid()}-", f"-{process}-"))


def test_temporary_names_are_never_the_same_and_are_known(tmp_path: Path) -> None:
    names = {temporary(tmp_path / "a.json").name for _ in range(100)}
    assert len(names) == 100
    assert all(map(is_leftover, names))
    assert not any(map(is_leftover, ("a.tmp", ".a.tmp", "a.json", ".a.json.12345678-1.tmp")))


def test_what_dead_processes_left_goes_and_what_others_write_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, living = leftover(tmp_path / "a", dead_process()), leftover(tmp_path / "a", os.getppid())
    other = leftover(tmp_path / "b", dead_process())
    monkeypatch.setattr(io, "_host", lambda: "ffffffff")
    elsewhere = leftover(tmp_path / "a", 1)
    monkeypatch.undo()
    for path in (dead, living, other, elsewhere):
        path.write_bytes(b"half")
    old = leftover(tmp_path / "a", dead_process())
    old.mkdir()
    (old / "file").write_bytes(b"")
    write_atomic(tmp_path / "a", b"whole")
    assert not dead.exists()
    assert not old.exists()
    assert living.exists()
    clear_leftovers(tmp_path)
    assert not other.exists()
    os.utime(elsewhere, (0, 0))
    clear_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {tmp_path / "a", living}
    clear_leftovers(tmp_path, every=True)
    clear_leftovers(tmp_path / "nowhere")
    assert set(tmp_path.iterdir()) == {tmp_path / "a"}


def test_a_file_is_on_disk_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        order.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "file")
        sync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_output(tmp_path / "new" / "a.csv", "x\n", make_folder=True)
    assert order == ["file", "rename", "folder"]


def test_a_full_disk_is_one_error_and_the_old_file_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_output(tmp_path / "a.csv", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputWriteError, match=r"a\.csv cannot be written: No space left on device"):
        write_output(tmp_path / "a.csv", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.csv", "old")]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    killed = leftover(tmp_path / "out", dead_process())
    killed.mkdir()
    with pytest.raises(IsADirectoryError), new_folder(tmp_path / "out") as folder:
        folder.write_text("half")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("whole")
        (folder / "a").chmod(0o600)
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    os.umask(mask := os.umask(0))
    assert (tmp_path / "out" / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_directories_change_places_without_a_moment_between(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange directories")
    assert (tmp_path / "a" / "b").exists()
    missed: list[bool] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            missed.append(not (tmp_path / "a").exists())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(500):
        exchange(tmp_path / "a", tmp_path / "b")
    stop.set()
    watcher.join()
    assert missed
    assert not any(missed)
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "nowhere")


def test_metadata_in_order_is_the_same_file(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1, dtype=torch.int8)}
    metadata = {f"name{i}": "ü" * i for i in range(20)}
    files = {
        sorted_safetensors(save(tensors, metadata=dict(sorted(metadata.items(), reverse=i % 2)))) for i in range(8)
    }
    (data,) = files
    assert metadata_of(data) == metadata
    assert all(torch.equal(value, tensors[name]) for name, value in load(data).items())
    assert metadata_of(save(tensors)) == {}

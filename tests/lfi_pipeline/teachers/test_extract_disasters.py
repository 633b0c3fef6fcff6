"""Disasters while a cache is written: what is committed stays, one error says what to do, a rerun finishes."""

from __future__ import annotations

import copy
import errno
import hashlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import LFIError, OutputWriteError, TeacherError
from lfi_pipeline.targets import TargetWriter
from lfi_pipeline.targets.commits import LAYOUTS
from lfi_pipeline.targets.verify import verify
from lfi_pipeline.targets.writer import claimed
from lfi_pipeline.teachers import CocaTeacher, extract, shards
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.config import ExtractConfig

Run = Callable[..., None]
SHARDS = 6


@pytest.fixture
def run(tiny_teacher: CocaTeacher, scenes_root: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Extract six shards into `out` with the tiny teacher."""
    monkeypatch.setattr(job, "load_teacher", lambda name, **_: tiny_teacher)
    monkeypatch.setattr(extract, "POLL_SECONDS", 0.02)

    def extracted(out: Path, layout: str = "zarr") -> None:
        config = ExtractConfig(
            dataset="scenes",
            data_root=scenes_root,
            words=6,
            samples_per_shard=4,
            batch_size=4,
            kind="relevance",
            layout=layout,
            device="cpu",
        )
        extract.extract(config, out)

    return extracted


@pytest.fixture
def wanted(run: Run, tmp_path: Path) -> dict[str, str]:
    """What an undisturbed run writes."""
    run(tmp_path / "undisturbed")
    return _tree(tmp_path / "undisturbed")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a real file system: `small_disk("size=64k")`."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        if _system("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)):
            pytest.skip("needs the right to mount a tmpfs")
        return place

    yield mount
    _system("umount", str(place))


def _system(*words: str) -> int:
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode
    except FileNotFoundError:
        return 127


def _tree(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def _committed(out: Path) -> dict[str, str]:
    """The commit records, and the files of zarr arrays."""
    return {name: digest for name, digest in _tree(out).items() if name.startswith(("commits", "views", "index"))}


def _threads() -> list[str]:
    """Threads that an extraction starts."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("commit", "images"))]


def _require_free(out: Path) -> None:
    """Every shard can be claimed at once, as by another process: a lock belongs to the file that was opened."""
    for shard in range(SHARDS):
        with claimed(out, f"{shard:06d}") as ours:
            assert ours, f"shard {shard} is still claimed"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_keeps_what_is_committed_and_the_rerun_finishes(
    run: Run, small_disk: Callable[[str], Path], tmp_path: Path, layout: str
) -> None:
    run(tmp_path / "undisturbed", layout)
    wanted = _tree(tmp_path / "undisturbed")
    disk = small_disk("size=2m")
    ballast, stages, told = disk / "ballast", set(), []
    for free in (8, 24, 48, 72, 96, 120, 144):  # KiB
        room = os.statvfs(disk)
        ballast.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free * 1024)))
        before = _committed(disk / "out") if (disk / "out").exists() else {}
        try:
            run(disk / "out", layout)
        except OutputWriteError as error:
            told.append(str(error))
        after = _committed(disk / "out") if (disk / "out").exists() else {}
        done = {name for name in after if name.startswith("commits")}
        assert {name for name in before if name.startswith("commits")} <= done
        assert all(after[name] == wanted[name] for name in done)
        stages.add(len(done))
        ballast.unlink()
    assert len(stages) > 2, "the disk was full at one moment only"
    assert all("No space left on device" in each and "run the same command again" in each for each in told)
    run(disk / "out", layout)
    assert _tree(disk / "out") == wanted
    assert verify(disk / "out") == []


@pytest.mark.parametrize(
    ("code", "after"),
    [(errno.ENOSPC, 0), (errno.ENOSPC, 11), (errno.ENOSPC, 40), (errno.EROFS, 3), (errno.EROFS, 60), (errno.EIO, 20)],
)
def test_a_write_that_fails_is_one_error_and_the_rerun_finishes(
    run: Run, wanted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, after: int
) -> None:
    sync, calls = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OutputWriteError, match=os.strerror(code)):
            run(out)
    assert not _threads()
    committed = {name: digest for name, digest in _tree(out).items() if name.startswith("commits")}
    assert committed.items() <= wanted.items()
    if committed:
        _require_free(out)
    run(out)
    assert _tree(out) == wanted


def test_a_read_only_output_is_one_error(run: Run, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=2m")
    run(disk / "out")
    before = _tree(disk / "out")
    (disk / "out/commits/000003.json").unlink()
    if _system("mount", "-o", "remount,ro", str(disk)):
        pytest.skip("needs the right to mount a tmpfs anew")
    for name in ("out", "new"):
        with pytest.raises(OutputWriteError, match="Read-only file system"):
            run(disk / name)
    assert _system("mount", "-o", "remount,rw", str(disk)) == 0
    run(disk / "out")
    assert _tree(disk / "out") == before


def test_an_output_below_a_file_is_one_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputWriteError, match="Not a directory"):
        run(tmp_path / "file/out")


def test_two_extractors_share_one_output(
    run: Run, wanted: dict[str, str], tiny_teacher: CocaTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "load_teacher", lambda name, **_: copy.deepcopy(tiny_teacher))
    start = threading.Barrier(2)

    def one() -> None:
        start.wait()
        run(tmp_path / "out")

    with ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(one) for _ in range(2)]:
            ended.result(timeout=60)
    assert _tree(tmp_path / "out") == wanted


def test_a_clock_that_jumps_changes_nothing(
    run: Run, wanted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, out, replace = random.Random(0), tmp_path / "out", Path.replace

    def jumping() -> float:
        return rng.choice([0.0, 1e9, 4.1e9])  # 1970, 2001, 2099

    def aged(path: Path, target: Path) -> Path:
        made = replace(path, target)
        os.utime(made, (jumping(), jumping()))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        patch.setattr(time, "time_ns", lambda: int(jumping() * 1e9))
        patch.setattr(Path, "replace", aged)
        run(out)
    assert _tree(out) == wanted
    for date in (0.0, 4.1e9):
        for file in out.rglob("*"):
            os.utime(file, (date, date))
        times = {file: file.stat().st_mtime for file in out.rglob("*") if file.is_file()}
        with monkeypatch.context() as patch:
            patch.setattr(TargetWriter, "commit", None)  # nothing is written
            run(out)
        assert {file: file.stat().st_mtime for file in out.rglob("*") if file.is_file()} == times


class _Broken(Exception):
    """An error that no code expects."""


@pytest.mark.parametrize("place", ["teacher", "images", "committing", "texts"])
@pytest.mark.parametrize(
    ("error", "after"), [(_Broken, 0), (_Broken, 3), (KeyboardInterrupt, 2), (OutputWriteError, 1)]
)
def test_an_error_in_any_thread_frees_the_claims_and_stops_the_threads(
    run: Run,
    wanted: dict[str, str],
    tiny_teacher: CocaTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    place: str,
    after: int,
) -> None:
    out = tmp_path / "out"
    owner, name = {
        "teacher": (tiny_teacher, "interaction_maps"),
        "images": (shards, "decode_image"),
        "committing": (TargetWriter, "commit"),
        "texts": (shards.ShardMaker, "_begin"),
    }[place]
    original, calls = getattr(owner, name), 0

    def breaking(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error("broken on purpose")
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, breaking)
        with pytest.raises(error, match="broken on purpose") as raised:
            run(out)
        assert not _threads()
        _require_free(out)
    assert raised.value is not None  # a kept traceback holds no claim
    kept = _tree(out)
    assert {name: kept[name] for name in kept if name.startswith("commits")}.items() <= wanted.items()
    run(out)
    assert _tree(out) == wanted


def test_a_users_error_in_the_teacher_is_raised_as_it_is(
    run: Run, tiny_teacher: CocaTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise TeacherError("the weights are nonsense")

    monkeypatch.setattr(tiny_teacher, "interaction_maps", broken)
    with pytest.raises(LFIError, match="nonsense"):
        run(tmp_path / "out")

"""A claim is exclusive among living processes, and a dead process holds nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lfi_pipeline.targets import writer as claims
from lfi_pipeline.targets.writer import STAGING, claimed, clear_staging, staging_file


def test_a_claim_excludes_others_and_ends_without_a_trace(tmp_path: Path) -> None:
    with claimed(tmp_path, "a") as first, claimed(tmp_path, "a") as second, claimed(tmp_path, "b") as other:
        assert (first, second, other) == (True, False, True)
    with claimed(tmp_path, "a") as again:
        assert again
    assert list((tmp_path / STAGING).iterdir()) == []


def test_a_killed_holder_frees_its_claim_and_its_leftovers_go(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with claimed(tmp_path, "a"):
            staging_file(tmp_path, "a", "views/c.0").write_bytes(b"half")
            os.write(writer, b"x")
            signal.pause()
    os.read(reader, 1)
    with claimed(tmp_path, "a") as held:
        assert not held
    assert len(list((tmp_path / STAGING).iterdir())) == 2
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with claimed(tmp_path, "a") as held:
        assert held
        assert [entry.name for entry in (tmp_path / STAGING).iterdir()] == ["a.lock"]


def test_without_locks_every_process_may_work_and_touches_no_file_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_lock", lambda descriptor: False)
    with claimed(tmp_path, "a") as first:
        scratch = staging_file(tmp_path, "a", "c.0")
        scratch.write_bytes(b"half")
        with claimed(tmp_path, "a") as second:
            assert first
            assert second
        assert scratch.exists()
    clear_staging(tmp_path)
    assert not (tmp_path / STAGING).exists()

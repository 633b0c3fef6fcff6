"""A folder's files are what was written, or the one that is not is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lfi_pipeline.core import parse as checksums
from lfi_pipeline.core.errors import OutputWriteError, RunError
from lfi_pipeline.core.io import seal, temporary
from lfi_pipeline.core.parse import (
    RECORD,
    read_checked,
    recorded,
    require_unchanged,
    seal_folder,
    unseal_folder,
    verify_run,
    write_recorded,
)

FILES = {"config.json": b"{}", "checkpoints/best.safetensors": b"weights", "evaluation/a.json": b"[1]", "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files, sealed; a lock and a leftover that are not."""
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "run.lock").write_bytes(b"me")
    temporary(tmp_path / "config.json").write_bytes(b"{")
    seal_folder(tmp_path, {"summary.json": b"done"}, leave_out=frozenset({"run.lock"}))
    (tmp_path / "summary.json").write_bytes(b"done")
    return tmp_path


def test_every_flipped_bit_is_found_and_named(folder: Path) -> None:
    assert verify_run(folder) == []
    records = recorded(folder)
    assert records is not None
    assert set(records) == {*FILES, "summary.json"}
    for name in [*FILES, "summary.json", RECORD]:
        data = (folder / name).read_bytes()
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(changed)
            assert [fault.file for fault in verify_run(folder)] == [name]
            with pytest.raises(RunError, match=r"damaged|does not match its checksum"):
                read_checked(folder / ("config.json" if name == RECORD else name))
        (folder / name).write_bytes(data)
    assert verify_run(folder) == []


def test_a_file_that_is_gone_or_has_another_length_is_named(folder: Path) -> None:
    (folder / "empty").write_bytes(b"x")
    (folder / "summary.json").unlink()
    messages = {fault.file: fault.message for fault in verify_run(folder)}
    assert messages.keys() == {"empty", "summary.json"}
    assert "has 1 bytes, recorded were 0" in messages["empty"]
    assert "cannot be read: No such file" in messages["summary.json"]


def test_without_a_record_nothing_is_compared_and_verifying_says_so(folder: Path) -> None:
    unseal_folder(folder)
    unseal_folder(folder)
    require_unchanged(folder / "config.json", b"other")
    assert [(fault.file, "not finished" in fault.message) for fault in verify_run(folder)] == [(RECORD, True)]
    with pytest.raises(RunError, match="is no directory"):
        verify_run(folder / "config.json")


def test_files_of_others_are_left_alone(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert verify_run(folder) == []
    assert read_checked(folder / "notes.txt") == b"mine"


def test_a_file_that_is_replaced_is_right_before_and_after_a_kill(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any of its writes, a replacement leaves the old file or the new one, and neither is a fault."""
    write = checksums.write_atomic
    for survived in range(4):
        left = iter(range(survived))

        def killed(path: Path, data: bytes, left: object = left) -> None:
            if next(left, None) is None:  # type: ignore[call-overload]
                raise KeyboardInterrupt
            write(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(checksums, "write_atomic", killed)
            try:
                write_recorded(folder, "evaluation/a.json", b"[%d]" % survived)
            except KeyboardInterrupt:
                assert survived < 3
        assert verify_run(folder) == []
        read_checked(folder / "evaluation/a.json")
    records = recorded(folder)
    assert records is not None
    assert len(records["evaluation/a.json"]) == 1
    write_recorded(folder, "new/b.json", b"{}")
    assert set(recorded(folder) or ()) == {*FILES, "summary.json", "new/b.json"}


def test_a_record_of_something_else_is_refused(folder: Path) -> None:
    good = json.loads((folder / RECORD).read_text())
    for files in ([], {"a": []}, {"a": [{"size": 1}]}, {"../a": [{"size": 1, "crc32c": "0"}]}, {"a": 1}):
        (folder / RECORD).write_bytes(seal({"format": good["format"], "files": files}))
        assert [fault.file for fault in verify_run(folder)] == [RECORD]
        with pytest.raises(RunError):
            read_checked(folder / "config.json")


def test_what_cannot_be_written_is_one_error(folder: Path) -> None:
    with pytest.raises(OutputWriteError, match=r"config\.json/x\.json cannot be written"):
        write_recorded(folder, "config.json/x.json", b"")

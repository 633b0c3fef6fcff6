"""Directories, directories of directories, and patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.report.runs import find_runs


def test_runs_their_parent_and_patterns(make_run: Any) -> None:
    first, second = make_run("a-0"), make_run("b-0")
    parent = first.parent
    (parent / "leaderboard.csv").write_text("")
    (parent / "tensorboard").mkdir()
    assert find_runs([second, first]) == ([second, first], [])
    assert find_runs([parent]) == ([first, second], [])
    assert find_runs([parent, first]) == ([first, second], [])
    assert find_runs([parent / "a-*"]) == ([first], [])
    everything, notes = find_runs(sorted(parent.iterdir()))  # as a shell expands runs/*
    assert everything == [first, second]
    assert [note.split(" was")[0] for note in notes] == [str(parent / "tensorboard")]


def test_nothing_there(tmp_path: Path, make_run: Any) -> None:
    with pytest.raises(RunError, match="is not there"):
        find_runs([make_run("a"), tmp_path / "nowhere"])
    with pytest.raises(RunError, match="is not there"):
        find_runs([tmp_path / "no*"])
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        find_runs([tmp_path])

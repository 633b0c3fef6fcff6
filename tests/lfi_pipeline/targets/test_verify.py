"""No changed bit and no missing file goes unnoticed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.errors import TargetsError
from lfi_pipeline.targets import verify


def test_an_undamaged_cache_has_no_faults(finished: Path) -> None:
    assert verify(finished, images=False) == []


def test_one_flipped_bit_in_any_file_is_found_there(synthetic: Any, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    shutil.copytree(finished, path)
    for number, name in enumerate(synthetic.tree(finished)):
        file = path / name
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1, 7919 * number % len(whole)):
            data = bytearray(whole)
            data[place] ^= 1 << (number % 8)
            file.write_bytes(data)
            faults = verify(path, images=False)
            assert {fault.file for fault in faults} == {name}, (name, place)
        file.write_bytes(whole)
    assert verify(path, images=False) == []


def test_a_missing_file_is_found(synthetic: Any, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    shutil.copytree(finished, path)
    for name in synthetic.tree(finished):
        if name != "manifest.json":
            (path / name).rename(tmp_path / "aside")
            assert {fault.file for fault in verify(path, images=False)} == {name}
            (tmp_path / "aside").rename(path / name)


def test_damage_is_pinned_to_the_sample(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    shutil.copytree(finished, path)
    file = path / "views/hflip/maps/c.1.0.0.0.0"
    data = bytearray(file.read_bytes())
    data[3] ^= 1  # in the first inner chunk
    file.write_bytes(data)
    (fault,) = verify(path, images=False)
    assert (fault.shard, fault.sample) == (1, 4)
    assert "commits/000001.json" in fault.message


def test_missing_shards_are_named(synthetic: Any, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    synthetic.extract(path, limit=1)
    assert [(fault.shard, fault.file) for fault in verify(path, images=False)] == [
        (1, "commits/000001.json"),
        (2, "commits/000002.json"),
    ]


def test_what_is_not_a_cache_is_no_fault_but_an_error(tmp_path: Path) -> None:
    with pytest.raises(TargetsError, match="not a targets cache"):
        verify(tmp_path)

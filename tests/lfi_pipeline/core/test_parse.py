from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import pytest

from lfi_pipeline.core.errors import DatasetError, RunError
from lfi_pipeline.core.parse import MAX_DEPTH, parse_json, parse_toml, read_json, read_limited


def test_reads_with_and_without_byte_order_mark(tmp_path: Path) -> None:
    for name, start in (("a", b""), ("b", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(start + b'{"a": [1, NaN]}')
        assert read_json(tmp_path / name, error=RunError)["a"][0] == 1
        assert parse_toml(start + b"a = 1\n", f"{name}.toml", error=RunError) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "must be JSON in UTF-8"),
        (b"{", "must be JSON in UTF-8"),
        (b"\xff\xfe", "must be JSON in UTF-8"),
        (b"[" * 100_000, "levels"),
        (b'{"a":' * 100_000, "levels"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "levels"),
        (b"9" * 5000, "digits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_hostile_json_is_one_line(content: bytes, why: str) -> None:
    with pytest.raises(RunError, match=why) as caught:
        parse_json(content, "config.json", error=RunError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).startswith("config.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a", "must be TOML in UTF-8"),
        (b"a = " + b"[" * 100_000, "levels"),
        (b"a = " + b"{a=" * 100_000, "levels"),
        (b"a = " + b"9" * 5000, "digits"),
        (b"a" + b".a" * 1000 + b" = 1", "levels"),
        (b"[a" + b".a" * 1000 + b"]", "levels"),
        (b"a" + b".a" * 400_000 + b" = 1", "dots"),
        (b"# " + b"x" * (1 << 20), "at most 1048576 bytes"),
    ],
)
def test_hostile_toml_is_one_line_soon(content: bytes, why: str) -> None:
    begun = time.process_time()
    with pytest.raises(DatasetError, match=why) as caught:
        parse_toml(content, "own.toml", error=DatasetError)
    assert "\n" not in str(caught.value)
    assert time.process_time() - begun < 20


def test_depth_that_is_allowed() -> None:
    value = parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x", error=RunError)
    assert isinstance(value, list)


def test_never_reads_more_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.write_bytes(b"[" + b" " * 1000 + b"]")
    with pytest.raises(RunError, match="at most 100 bytes"):
        read_json(path, error=RunError, max_bytes=100)


def test_a_pipe_and_a_folder_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(RunError, match="must be a file"):
            read_json(path, error=RunError)
    with pytest.raises(RunError, match="No such file"):
        read_json(tmp_path / "absent", error=RunError)


def test_gzip_is_unpacked_where_it_may_be_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b"[1,") + gzip.compress(b"2]"))
    assert read_limited(path, error=DatasetError, gzipped=True) == b"[1,2]"
    assert read_limited(path, error=DatasetError).startswith(b"\x1f\x8b")
    path.write_bytes(gzip.compress(b"0" * 10_000_000))
    with pytest.raises(DatasetError, match="at most 1000 bytes"):
        read_limited(path, error=DatasetError, gzipped=True, max_bytes=1000)
    path.write_bytes(gzip.compress(b"0123456789" * 100)[:-12])
    with pytest.raises(DatasetError, match="cut off"):
        read_limited(path, error=DatasetError, gzipped=True)
    path.write_bytes(b"\x1f\x8b" + b"x" * 100)
    with pytest.raises(DatasetError, match="damaged gzip"):
        read_limited(path, error=DatasetError, gzipped=True)

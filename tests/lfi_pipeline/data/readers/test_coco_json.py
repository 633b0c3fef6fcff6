from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.readers import coco_json
from lfi_pipeline.data.readers.coco_json import stream_lists


def read(path: Path, *wanted: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for name, text in stream_lists(path, frozenset(wanted)):
        found[name] += json.loads(b"[" + text + b"]")
    return found


RECORD = st.recursive(
    st.none() | st.integers() | st.text('a"\\{}[],é', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\[', max_size=3), inner, max_size=3),
    max_leaves=6,
)
FILE = st.fixed_dictionaries(
    {"info": RECORD, "images": st.lists(st.dictionaries(st.text(max_size=3), RECORD, max_size=3), max_size=6)},
    optional={"licenses": st.lists(RECORD, max_size=3), "annotations": st.lists(RECORD, max_size=6), "x": RECORD},
)


@settings(max_examples=150, deadline=None)
@given(FILE, st.integers(1, 60), st.booleans(), st.sampled_from([None, 1]))
def test_pieces_of_any_size_hold_what_the_lists_hold(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], block: int, ascii_only: bool, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(content, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_json, "_BLOCK", block)
        found = read(path, "images", "annotations")
    assert found["images"] == content["images"]
    assert found["annotations"] == content.get("annotations", [])


def test_gzip_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + b' {"images": [{"id": 1}]} '))
    assert read(path, "images") == {"images": [{"id": 1}]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty file"),
        (b"  ", "empty file"),
        (b"[]", "a JSON object, got"),
        (b"<html>", "a JSON object, got"),
        (b'{"images": [', "cut off"),
        (b'{"images": [{"id": 1}', "cut off"),
        (b'{"images": [{"id": "', "cut off"),
        (b'{"images": []', "cut off"),
        (b'{"images": []} {}', "goes on behind it"),
        (b'{"images": {"id": 1}}', "is a list, got an object"),
        (b'{"images": [' + b"[" * 100_000, "at most 64 levels"),
        (gzip.compress(b'{"images": []}', mtime=0)[:-9], "ended before|cut off"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"a\\.json.*({why})"):
        read(path, "images")


def test_a_record_without_end_is_not_gathered_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_json, "_BLOCK", 100)
    monkeypatch.setattr(coco_json, "_LARGEST_RECORD", 1000)
    path = tmp_path / "a.json"
    path.write_bytes(b'{"images": [{"a": "' + b"x" * 5000 + b'"}]}')
    with pytest.raises(DatasetError, match="at most 1000 bytes"):
        read(path, "images")

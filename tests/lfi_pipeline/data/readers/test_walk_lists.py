from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.readers.walk import read_labelled_paths, read_lines

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs"]), min_size=1, max_size=20)


def test_lines_keep_their_numbers_and_what_is_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\r\n  \ntw\u2028o\x0b\n three\t\n\n".encode())
    assert list(read_lines(path)) == [(1, "one"), (4, "tw\u2028o\x0b"), (5, " three\t")]
    path.write_bytes(b"")
    assert list(read_lines(path)) == []


def test_what_cannot_be_read_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 70_000)
    with pytest.raises(DatasetError, match=r"a\.txt, line 1: a line must have less"):
        list(read_lines(path))
    path.write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(DatasetError, match=r"a\.txt must be a text file in UTF-8"):
        list(read_lines(path))
    with pytest.raises(DatasetError, match="No such file"):
        list(read_lines(tmp_path / "absent.txt"))
    with pytest.raises(DatasetError, match="Is a directory"):
        list(read_lines(tmp_path))


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3).map(" ".join), st.integers(1, 7)), max_size=8),
    end=st.sampled_from(["\n", "\r\n", " \n", "\n\n"]),
    bom=st.booleans(),
)
def test_rows_come_back_whatever_the_system(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]], end: str, bom: bool
) -> None:
    rows = [(name.strip().removeprefix("\ufeff").strip() or "x", label) for name, label in rows]
    path = tmp_path_factory.mktemp("lists") / "a.txt"
    path.write_bytes(("\ufeff" * bom + "".join(f"{name} {label}{end}" for name, label in rows)).encode())
    assert [(name, label) for _, name, label in read_labelled_paths(path, 7)] == [(n, label - 1) for n, label in rows]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
@example(b"\xef\xbb")
def test_any_bytes_are_rows_or_a_dataset_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("lists") / "a.txt"
    path.write_bytes(content)
    try:
        rows = list(read_labelled_paths(path, 3))
    except DatasetError:
        return
    assert all(name and 0 <= label < 3 for _, name, label in rows)
    assert bool(rows) == bool(content.decode("utf-8-sig").strip())

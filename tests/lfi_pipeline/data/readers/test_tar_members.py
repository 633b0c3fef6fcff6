from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.io import tar_path
from lfi_pipeline.data.images import read_bytes
from lfi_pipeline.data.readers.tar_members import Member, list_members
from tests.lfi_pipeline.data.layouts import tar_bytes

FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def _info(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def _contents(path: Path) -> dict[str, bytes]:
    return {
        member.name: read_bytes(path.parent, tar_path(path.name, member.offset, member.size))
        for member in list_members(path)
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_format_and_names_of_every_kind(tmp_path: Path, form: int) -> None:
    contents = {
        "a.jpg": b"1" * 700,
        "Grüße 写真/b c.txt": b"",
        "d" * 90 + "/" + "e" * 80 + ".jpg": b"x" * 512,
        "./f": b"g",
    }
    if form != tarfile.USTAR_FORMAT:
        contents["l" * 300 + ".jpg"] = b"long"
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(contents.items(), form))
    assert _contents(path) == {name.removeprefix("./"): content for name, content in contents.items()}


def test_directories_are_passed_over_whatever_their_size(tmp_path: Path) -> None:
    folder = _info("a/", tarfile.DIRTYPE).tobuf()
    sized = _info("a", tarfile.DIRTYPE, size=4096).tobuf()
    (tmp_path / "a.tar").write_bytes(folder + sized + tar_bytes([("a/b.jpg", b"x")]))
    assert _contents(tmp_path / "a.tar") == {"a/b.jpg": b"x"}


def test_what_the_system_tar_writes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a b.jpg").write_bytes(b"abc")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "in", arcname="./in")
    assert _contents(tmp_path / "a.tar") == {"in/a b.jpg": b"abc"}


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (_info("/etc/passwd"), r"member '/etc/passwd' has a name that is absolute"),
        (_info("../up.jpg"), r"member '\.\./up\.jpg' has a name that has '\.\.'"),
        (_info("a/../../up.jpg"), r"has a name that has '\.\.'"),
        (_info("../dir", tarfile.DIRTYPE), r"member '\.\./dir/' has a name"),
        (_info("link.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), r"member 'link\.jpg' is a symbolic link"),
        (_info("hard.jpg", tarfile.LNKTYPE, linkname="good.jpg"), r"member 'hard\.jpg' is a hard link"),
        (_info("null", tarfile.CHRTYPE, devmajor=1, devminor=3), "member 'null' is a device"),
        (_info("sda", tarfile.BLKTYPE), "member 'sda' is a device"),
        (_info("pipe", tarfile.FIFOTYPE), "member 'pipe' is a named pipe"),
        (_info("holes.jpg", tarfile.GNUTYPE_SPARSE), "member 'holes.jpg' is a sparse file"),
        (_info("odd", b"Q"), "member 'odd' is of unknown type b'Q'"),
        (_info("s.jpg", pax_headers={"GNU.sparse.major": "1"}), "announces a sparse file"),
        (_info("p.jpg", pax_headers={"path": "/abs.jpg"}), "member '/abs.jpg' has a name that is absolute"),
        (_info("big.jpg", pax_headers={"comment": "x" * 70_000}), r"extended header of 7\d+ bytes; at most 65536"),
        (_info("n" * 70_000), r"extended header of 7\d+ bytes"),
        (_info("z.jpg", pax_headers={"size": "-5"}), "member 'z.jpg' has size '-5'"),
        (_info("z.jpg", pax_headers={"size": "9" * 17}), "'z.jpg' lies about its size"),
    ],
)
def test_hostile_members_are_named_and_refused(tmp_path: Path, member: tarfile.TarInfo, message: str) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(tar_bytes([("good.jpg", b"x"), (member, b""), ("after.jpg", b"y")]))
    with pytest.raises(DatasetError, match=rf"bad\.tar.*{message}"):
        list(list_members(path))


def test_an_empty_name_in_an_extended_header_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([(_info("a.jpg", pax_headers={"path": ""}), b"")]))
    with pytest.raises(DatasetError, match="has a name that is empty"):
        list(list_members(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    "records", [b"99 path=a\n", b"path=a\n", b"0 path=a\n", b"9 path=\xff\n", b"8 patha\n", b"\xb2 a=b\n"]
)
def test_extended_headers_that_cannot_be_parsed(tmp_path: Path, records: bytes) -> None:
    header = _info("PaxHeaders/x", tarfile.XHDTYPE, size=len(records)).tobuf()
    content = header + records.ljust(512, b"\0") + tar_bytes([("a.jpg", b"x")])
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot be parsed|not UTF-8"):
        list(list_members(tmp_path / "a.tar"))


def test_a_global_header_may_not_rename_everything(tmp_path: Path) -> None:
    def content(key: str) -> bytes:
        record = f"{len(key) + 8} {key}=abc\n".encode()
        assert len(record) == len(key) + 8
        return (
            _info("g", tarfile.XGLTYPE, size=len(record)).tobuf() + record.ljust(512, b"\0") + tar_bytes([("a", b"x")])
        )

    path = tmp_path / "a.tar"
    path.write_bytes(content("comment"))
    assert _contents(path) == {"a": b"x"}
    path.write_bytes(content("path"))
    with pytest.raises(DatasetError, match="global header that renames"):
        list(list_members(path))


@pytest.mark.parametrize(
    ("pack", "remedy"), [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")]
)
def test_compressed_tars_say_how_to_unpack_them(tmp_path: Path, pack, remedy: str) -> None:
    (tmp_path / "a.tar").write_bytes(pack(tar_bytes([("a.jpg", b"x")])))
    with pytest.raises(DatasetError, match=rf"compressed with .*unpack it first: {remedy} < a\.tar"):
        list(list_members(tmp_path / "a.tar"))


def test_every_truncation_is_found(tmp_path: Path) -> None:
    whole = tar_bytes([("a.jpg", b"x" * 600), ("b.jpg", b"y" * 100)])
    end = len(whole.rstrip(b"\0"))
    path = tmp_path / "a.tar"
    for length in [*range(0, 3072, 37), 512, 1536, 2048, 2560, end]:
        path.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match=r"a\.tar(: | is cut off| is empty)"):
            list(list_members(path))
    path.write_bytes(whole[: 2560 + 512])  # one zero block is the end
    assert len(list(list_members(path))) == 2


def test_tars_joined_with_cat_do_not_lose_their_second_half(tmp_path: Path) -> None:
    one = tar_bytes([("a.jpg", b"x")])
    (tmp_path / "a.tar").write_bytes(one + one)
    with pytest.raises(DatasetError, match="goes on behind its end mark"):
        list(list_members(tmp_path / "a.tar"))


def test_a_damaged_header_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    content = bytearray(tar_bytes([("a.jpg", b"x"), ("b.jpg", b"y"), ("c.jpg", b"z")]))
    content[1024 + 100] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DatasetError, match=r"no valid tar header at byte 1024 behind member 'a\.jpg'"):
        list(list_members(tmp_path / "a.tar"))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("Grüße.jpg"))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    with pytest.raises(DatasetError, match="name that is not UTF-8"):
        list(list_members(tmp_path / "a.tar"))


def test_what_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "page.tar").write_bytes(b"<html>not found</html>" * 100)
    (tmp_path / "empty.tar").write_bytes(b"")
    for name, message in {
        "folder": "must be a tar file",
        "pipe": "must be a tar file",
        "page": "no valid tar header at byte 0",
        "empty": "is empty",
        "absent": "No such file",
    }.items():
        with pytest.raises(DatasetError, match=rf"{name}\.tar.*{message}"):
            list(list_members(tmp_path / f"{name}.tar"))


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=120).filter(
    lambda name: name not in (".", "..")
)


@settings(max_examples=60, deadline=None)
@given(contents=st.dictionaries(NAMES, st.binary(max_size=1200), max_size=5), form=st.sampled_from(FORMS[1:]))
def test_what_tarfile_writes_is_listed_where_tarfile_finds_it(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes], form: int
) -> None:
    path = tmp_path_factory.mktemp("tars") / "a.tar"
    path.write_bytes(tar_bytes(contents.items(), form))
    with tarfile.open(path) as tar:
        expected = [Member(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    assert list(list_members(path)) == expected


EXAMPLE = tar_bytes(
    [("a.jpg", b"x" * 600), ("n" * 150, b"y"), (_info("p.jpg", pax_headers={"path": "é" * 80}), b"z" * 512)]
)


@settings(max_examples=250, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 255)), max_size=6),
    length=st.integers(0, len(EXAMPLE)) | st.just(len(EXAMPLE)),
)
def test_any_damage_is_a_listing_inside_the_file_or_a_dataset_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(EXAMPLE)
    for where, value in changes:
        content[where] = value
        start = where // 512 * 512  # a checksum that holds, so that the damage gets past it
        if bytes(EXAMPLE[start + 257 : start + 262]) == b"ustar":
            total = sum(content[start : start + 148]) + 256 + sum(content[start + 156 : start + 512])
            content[start + 148 : start + 156] = b"%06o\0 " % total
    path = tmp_path_factory.mktemp("tars") / "a.tar"
    path.write_bytes(content[:length])
    try:
        members = list(list_members(path))
    except DatasetError:
        return
    for member in members:
        assert 0 <= member.offset <= member.offset + member.size <= length
        assert ".." not in member.name.split("/")
        assert not member.name.startswith("/")

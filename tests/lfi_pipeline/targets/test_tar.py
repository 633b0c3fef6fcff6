"""The webdataset layout: its bytes are what the docstring says, and nothing else is taken for them."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError, SpecMismatchError, UnknownNameError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.tar import (
    END,
    ViewCodec,
    header,
    image_extension,
    padding,
    parse_json,
    read_members,
    sample_json,
)


def archive(*members: tuple[str, bytes]) -> bytes:
    parts = [header(name, len(content)) + content + bytes(padding(len(content))) for name, content in members]
    return b"".join([*parts, END])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_plain_webdataset_numcodecs_and_numpy_read_it(synthetic: Any, both: dict[str, Path]) -> None:
    spec, store = synthetic.spec(), TargetStore.open(both["zarr"])
    urls = [str(path) for path in sorted((both["webdataset"] / "shards").iterdir())]
    samples = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False))
    gc.collect()
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(10)]
    for position, sample in enumerate(samples):
        text = json.loads(sample["json"])
        assert text["key"] == f"{position:03d}"
        assert text["fingerprint"] == spec.fingerprint
        assert text["classes"] == [("cat", "dog")[position % 2]]
        members = {name for name in sample if not name.startswith("__")}
        if position == 5:
            assert members == {"json"}
            assert text["quarantine"] == "cannot be decoded"
            continue
        assert members == {"jpg", "json", "full.zst", "hflip.zst"}
        assert sample["jpg"] == synthetic.image(position)
        for view in ("full", "hflip"):
            expected = store.read(position, view)
            raw, first = numcodecs.Zstd().decode(sample[f"{view}.zst"][:-4]), 0
            for name, kind, shape in text["arrays"]:
                size = int(np.prod(shape)) * np.dtype(kind).itemsize
                found = np.frombuffer(raw[first : first + size], kind).reshape(shape)
                np.testing.assert_array_equal(found, getattr(expected, name))
                first += size
            assert first == len(raw)
            ids = text["words"][view]["ids"]
            assert ids == expected.words.tolist()
            assert text["words"][view]["text"] == [None if i < 0 else f"word{i}" for i in ids]


def test_tarfile_sees_plain_members_without_owner_or_time(both: dict[str, Path]) -> None:
    with tarfile.open(both["webdataset"] / "shards/000001.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members][:5] == [
        "000000004.jpg",
        "000000004.json",
        "000000004.full.zst",
        "000000004.hflip.zst",
        "000000005.json",
    ]
    assert {(m.isreg(), m.uid, m.gid, m.uname, m.mtime, m.mode) for m in members} == {(True, 0, 0, "", 0, 0o644)}


@given(st.integers(0, 8**11 - 1), st.from_regex(r"[0-9]{9}\.[a-z]{1,8}(\.zst)?", fullmatch=True))
@settings(max_examples=50)
def test_headers_are_those_of_tarfile(size: int, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("path", "content", "extension"),
    [
        ("a/B.JPG", b"", "jpg"),
        ("a/b.png", b"\xff\xd8\xff", "png"),
        ("a.tar#512+99", b"\xff\xd8\xff\xe0", "jpg"),
        ("a.tar#512+99", b"\x89PNG\r\n", "png"),
        ("a.tar#512+99", b"RIFF1234WEBPVP8", "webp"),
        ("a.tar#512+99", b"something", "img"),
        ("x.pkl", b"", "img"),
        ("x.pyd", b"", "img"),
        ("x.json", b"{", "img"),
        ("x", b"", "img"),
        ("x.full.zst", b"", "img"),
    ],
)
def test_no_image_brings_a_name_along_that_a_decoder_would_unpickle(path: str, content: bytes, extension: str) -> None:
    assert image_extension(path, content) == extension


def test_members_come_back_with_their_places() -> None:
    members = [("000000000.jpg", b"x" * 700), ("000000000.json", b""), ("000000001.json", b"y" * 512)]
    data = archive(*members)
    found = list(read_members(io.BytesIO(data), len(data)))
    assert [(name, content) for name, _, content in found] == members
    assert all(data[offset : offset + len(content)] == content for _, offset, content in found)


@given(st.data())
@settings(max_examples=100)
def test_any_flipped_bit_outside_a_content_is_refused(data: st.DataObject) -> None:
    contents = [b"x" * 700, b"{}", b"y" * 30]
    whole = archive(*zip(("000000000.jpg", "000000000.json", "000000000.full.zst"), contents, strict=True))
    inside = {byte for _, at, part in read_members(io.BytesIO(whole), len(whole)) for byte in range(at, at + len(part))}
    place = data.draw(st.sampled_from([byte for byte in range(len(whole)) if byte not in inside]))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match=r"archive|header|member"):
        list(read_members(io.BytesIO(flipped), len(flipped)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../000000000.jpg", tarfile.REGTYPE),
        ("/etc/000000000.jpg", tarfile.REGTYPE),
        ("000000000.jpg", tarfile.SYMTYPE),
        ("000000000.jpg", tarfile.LNKTYPE),
        ("000000000.jpg", tarfile.CHRTYPE),
        ("000000000.jpg", tarfile.FIFOTYPE),
        ("000000000.jpg", tarfile.DIRTYPE),
        ("000000000.jpg", tarfile.XHDTYPE),
        ("000000000.jpg", tarfile.GNUTYPE_LONGNAME),
    ],
)
def test_foreign_members_are_refused(name: str, kind: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    data = member.tobuf(tarfile.USTAR_FORMAT) + END
    with pytest.raises(ValueError, match="header at byte 0"):
        list(read_members(io.BytesIO(data), len(data)))


def test_a_member_larger_than_the_archive_is_not_read() -> None:
    data = header("000000000.jpg", 8**11 - 1) + END
    with pytest.raises(ValueError, match="more than the archive holds"):
        list(read_members(io.BytesIO(data), len(data)))


def test_arrays_of_another_size_are_refused_before_they_are_made(synthetic: Any) -> None:
    codec = ViewCodec(synthetic.spec())
    for size in (10, 10**8):
        frame = numcodecs.Zstd().encode(bytes(size))
        with pytest.raises(ValueError, match=f"it holds {size} bytes, not 232"):
            codec.decode(frame + google_crc32c.value(frame).to_bytes(4, "little"))


def test_one_changed_bit_of_json_or_arrays_is_refused(synthetic: Any) -> None:
    codec = ViewCodec(synthetic.spec())
    rng = np.random.default_rng(0)
    arrays = {
        "maps": rng.integers(0, 255, (2, 3, 5, 6), dtype=np.uint8),
        "scale": rng.random((2, 3)).astype(np.float16),
        "words": np.array([1, 2, -1], np.int32),
        "kept": rng.random((2, 3)).astype(np.float16),
        "image_embedding": rng.random(8).astype(np.float16),
    }
    view, text = codec.encode(arrays), sample_json({"key": "ä", "labels": [1, 2]})
    assert parse_json(text)["key"] == "ä"
    for name, array in codec.decode(view).items():
        np.testing.assert_array_equal(array, arrays[name])
    for data, parse in ((view, codec.decode), (text, parse_json)):
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 1 << (place % 8)
            with pytest.raises(ValueError, match="match"):
                parse(bytes(changed))


def test_the_layout_needs_the_images_that_the_checksums_are_of(synthetic: Any, tmp_path: Path) -> None:
    writer = synthetic.open_writer(tmp_path / "targets", layout="webdataset")
    payload = synthetic.payload(writer.spec, 0)
    with pytest.raises(ConfigError, match=r"payload\.images must have one entry a sample"):
        writer.commit(0, dataclasses.replace(payload, images=None))
    with pytest.raises(ConfigError, match=r"the image of 001 with crc32c .* got one with crc32c"):
        writer.commit(0, dataclasses.replace(payload, images=[payload.images[0], b"other", *payload.images[2:]]))
    with pytest.raises(ConfigError, match="got none"):
        writer.commit(0, dataclasses.replace(payload, images=[None] * 4))
    assert writer.pending_shards() == [0, 1, 2]


def test_the_layout_is_not_part_of_the_spec_and_cannot_change(synthetic: Any, both: dict[str, Path]) -> None:
    stores = {layout: TargetStore.open(path) for layout, path in both.items()}
    assert stores["zarr"].spec.fingerprint == stores["webdataset"].spec.fingerprint
    assert {layout: store.layout for layout, store in stores.items()} == {"zarr": "zarr", "webdataset": "webdataset"}
    for layout, path in both.items():
        other = {"zarr": "webdataset", "webdataset": "zarr"}[layout]
        with pytest.raises(SpecMismatchError, match=f"layout: '{layout}' != '{other}'"):
            synthetic.open_writer(path, layout=other)
    with pytest.raises(UnknownNameError, match="layout 'tar'"):
        synthetic.open_writer(both["zarr"], layout="tar")


def test_the_same_bytes_on_every_run_and_after_an_interruption(
    synthetic: Any, both: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "targets"
    synthetic.extract(path, limit=2, layout="webdataset", data_root=pictures)
    synthetic.extract(path, layout="webdataset", data_root=pictures)
    assert synthetic.tree(path) == synthetic.tree(both["webdataset"])

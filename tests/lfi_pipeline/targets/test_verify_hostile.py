"""Whatever the files of a cache hold, reading them ends in a result or in one of this project's errors, and soon."""

from __future__ import annotations

import io
import json
import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import CorruptTargetsError, LFIError, TargetsError
from lfi_pipeline.core.io import FileRecord, seal, unseal
from lfi_pipeline.targets import TargetStore, Vocabulary, ZeroShot
from lfi_pipeline.targets.commits import commit_file, tar_file
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.stream import TargetStream
from lfi_pipeline.targets.tar import END, header, padding, read_members, sample_json
from lfi_pipeline.targets.verify import verify

FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**30, 2**31, 2**63, 10**18, 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["/etc/passwd", "../x", "\ud800", "\0", "full", "zarr", "webdataset"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=4,
)
DEEP = b'{"format": "lfi-targets", "a": ' + b"[" * 200_000


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values below a JSON value."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutated(body: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """The same JSON with one value replaced, removed, or added."""
    path = data.draw(st.sampled_from(sorted(places(body), key=str)))
    holder: Any = body
    for key in path[:-1]:
        holder = holder[key]
    action = data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if action == "remove":
        del holder[path[-1]]
    elif action == "add" and isinstance(holder, dict):
        holder[data.draw(st.one_of(st.text(max_size=5), st.just("/etc/passwd"), st.just("../../x")))] = holder[path[-1]]
    else:
        holder[path[-1]] = data.draw(VALUES)
    return body


def sealed(body: dict[str, Any]) -> bytes:
    """As `seal`, or whatever comes near where the body holds what JSON does not."""
    try:
        return seal(body)
    except ValueError:
        return json.dumps(body).encode()


def use(path: Path, layout: str) -> None:
    """Everything that reads a cache."""
    for complete in (True, False):
        store = TargetStore.open(path, require_complete=complete)
        _ = store.vocabulary, store.zero_shot, store.source_root, store.summary(), store.usable
        if store.index.committed.sum() != 10:
            continue
        for column in ("keys", "paths", "labels", "domains", "captions", "reasons"):
            list(getattr(store.index, column))
        for view in store.spec.views:
            store.read_many(store.usable[:4], view)
        if layout == "webdataset":
            list(TargetStream(store, views=store.spec.views))


@contextmanager
def only_our_errors() -> Iterator[None]:
    """No other error, and no memory that only a lie would ask for."""
    tracemalloc.start()
    try:
        with suppress(LFIError):
            yield
        assert tracemalloc.get_traced_memory()[1] < 2**30
    finally:
        tracemalloc.stop()


def attempt(path: Path, layout: str) -> None:
    with only_our_errors():
        use(path, layout)
    with only_our_errors():
        verify(path, images=False)


@given(content=st.one_of(st.binary(max_size=200), st.just(DEEP), VALUES.map(lambda value: json.dumps(value).encode())))
@FUZZ
@pytest.mark.parametrize(
    "name",
    ["manifest.json", "source.json", "vocabulary.json", "classes.json", "commits/000001.json", "index/000001.parquet"],
)
def test_arbitrary_bytes(both: dict[str, Path], copy: Path, layout: str, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    attempt(copy, layout)
    shutil.copyfile(both[layout] / name, copy / name)


@given(data=st.data())
@FUZZ
def test_forged_manifests(both: dict[str, Path], copy: Path, layout: str, data: st.DataObject) -> None:
    original = (both[layout] / "manifest.json").read_bytes()
    body = mutated(unseal(original, copy), data)
    with suppress(LFIError, OverflowError, UnicodeEncodeError):
        body["fingerprint"] = TargetSpec.from_plain(body.get("spec")).fingerprint
    (copy / "manifest.json").write_bytes(sealed(body))
    attempt(copy, layout)
    (copy / "manifest.json").write_bytes(original)


@given(data=st.data())
@FUZZ
def test_forged_commit_records(both: dict[str, Path], copy: Path, layout: str, data: st.DataObject) -> None:
    original = (both[layout] / commit_file(1)).read_bytes()
    (copy / commit_file(1)).write_bytes(sealed(mutated(unseal(original, copy), data)))
    attempt(copy, layout)
    (copy / commit_file(1)).write_bytes(original)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("kl_rows",), 10**400),
        (("kl_rows",), -1),
        (("kl_sum",), 10**400),
        (("files", "index/000001.parquet", "size"), 10**400),
        (("files", "index/000001.parquet", "size"), True),
    ],
)
def test_numbers_that_nothing_can_add_up_are_refused(copy: Path, layout: str, way: tuple[str, ...], value: Any) -> None:
    path = copy / commit_file(1)
    body = unseal(path.read_bytes(), path)
    inner = body
    for name in way[:-1]:
        inner = inner[name]
    inner[way[-1]] = value
    path.write_bytes(sealed(body))
    with pytest.raises(CorruptTargetsError, match="not a commit record of shard 1"):
        TargetStore.open(copy)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "index/../../x", "index/000000.parquet"])
def test_records_that_name_files_elsewhere_are_refused(copy: Path, layout: str, name: str) -> None:
    path = copy / commit_file(1)
    body = unseal(path.read_bytes(), path)
    body["files"][name] = body["files"].pop("index/000001.parquet")
    path.write_bytes(seal(body))
    with pytest.raises(CorruptTargetsError, match="not a commit record of shard 1"):
        TargetStore.open(copy)
    assert [fault.file for fault in verify(copy)][:1] == [commit_file(1)]


@given(words=st.one_of(st.binary(max_size=80), VALUES.map(lambda value: json.dumps(value).encode())), npy=st.binary())
@FUZZ
def test_forged_vocabularies(tmp_path: Path, words: bytes, npy: bytes) -> None:
    good = Vocabulary(words=(), embeddings=np.zeros((0, 8))).to_files()["vocabulary.npy"]
    (tmp_path / "vocabulary.json").write_bytes(words)
    for content in (npy, good, good + npy):
        (tmp_path / "vocabulary.npy").write_bytes(content)
        with only_our_errors():
            Vocabulary.load(tmp_path, 8)


@given(data=st.data(), text=st.one_of(st.binary(max_size=80), VALUES.map(lambda value: json.dumps(value).encode())))
@FUZZ
def test_forged_classes(synthetic: Any, tmp_path: Path, data: st.DataObject, text: bytes) -> None:
    good = synthetic.zero_shot().to_files()
    array = data.draw(st.binary(min_size=32, max_size=32))
    (tmp_path / "classes.npy").write_bytes(good["classes.npy"])
    for content in (text, json.dumps(mutated(json.loads(good["classes.json"]), data)).encode()):
        (tmp_path / "classes.json").write_bytes(content)
        with only_our_errors():
            assert ZeroShot.load(tmp_path, ("cat", "dog"), 8).names == ("cat", "dog")
    (tmp_path / "classes.json").write_bytes(good["classes.json"])
    for content in (text, good["classes.npy"] + text, good["classes.npy"][: -len(array)] + array):
        (tmp_path / "classes.npy").write_bytes(content)
        with only_our_errors():
            loaded = ZeroShot.load(tmp_path, ("cat", "dog"), 8)
            assert np.allclose(np.linalg.norm(loaded.embeddings, axis=1), 1, atol=2e-2)


def test_a_vocabulary_that_says_it_is_huge_allocates_nothing(tmp_path: Path) -> None:
    head = b"\x93NUMPY\x01\x00v\x00{'descr': '<f2', 'fortran_order': False, 'shape': (4611686018427387904, 1), }"
    (tmp_path / "vocabulary.json").write_text('["a"]')
    (tmp_path / "vocabulary.npy").write_bytes(head.ljust(127) + b"\n")
    with pytest.raises(CorruptTargetsError, match=r"must be float16 \[1, 8\]"):
        Vocabulary.load(tmp_path, 8)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dataset", "samples"), 2**31),
        (("samples_per_shard",), 2**40),
        (("grid",), [2**20, 2**20]),
        (("words_per_sample",), 2**50),
        (("embedding_dim",), 2**60),
    ],
)
def test_absurd_shapes_are_refused(copy: Path, layout: str, path: tuple[str, ...], value: object) -> None:
    body = unseal((copy / "manifest.json").read_bytes(), copy)
    holder = body["spec"]
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    body["fingerprint"] = TargetSpec.from_plain(body["spec"]).fingerprint
    (copy / "manifest.json").write_bytes(seal(body))
    with pytest.raises(TargetsError, match="larger than any"):
        TargetStore.open(copy, require_complete=False)


@given(data=st.data())
@FUZZ
def test_forged_tars(both: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "targets"
    if not path.exists():
        shutil.copytree(both["webdataset"], path)
    name = tar_file(1)
    content = bytearray((both["webdataset"] / name).read_bytes())
    if data.draw(st.booleans()):
        members = {name: part for name, _, part in read_members(io.BytesIO(content), len(content))}
        chosen = data.draw(st.sampled_from([name for name in members if name.endswith("json")]))
        body = mutated(json.loads(members[chosen]), data)
        body.pop("sealed", None)
        with suppress(ValueError):  # of numbers that JSON does not have
            members[chosen] = sample_json(body)
        parts = [header(name, len(part)) + part + bytes(padding(len(part))) for name, part in members.items()]
        content = bytearray(b"".join([*parts, END]))
    else:
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (path / name).write_bytes(content)
    record = unseal((both["webdataset"] / commit_file(1)).read_bytes(), path)
    forged = FileRecord.of(bytes(content))
    record["files"][name] = {"size": forged.size, "crc32c": forged.crc32c}
    (path / commit_file(1)).write_bytes(seal(record))
    attempt(path, "webdataset")

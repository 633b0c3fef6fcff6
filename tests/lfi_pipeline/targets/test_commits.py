"""Where files lie, commit records that say nothing but what is in a shard, and streams that check while they read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import CorruptTargetsError
from lfi_pipeline.core.io import FileRecord, seal
from lfi_pipeline.targets.commits import (
    CheckedStream,
    CommitRecord,
    array_layouts,
    commit_file,
    committed_shards,
    fixed_files,
    parse_records,
    shard_files,
    summarise,
    zarr_metadata,
)


def record(spec: Any, layout: str = "zarr", shard: int = 1, **changes: Any) -> CommitRecord:
    fields: dict[str, Any] = {
        "shard": shard,
        "samples": len(spec.shard_range(shard)),
        "quarantined": {},
        "files": {name: FileRecord.of(name.encode()) for name in sorted(shard_files(spec, layout, shard))},
        "kl_sum": 0.5,
        "kl_rows": 4,
    }
    return CommitRecord(**{**fields, **changes})


def write(root: Path, content: bytes, shard: int = 1) -> None:
    (root / "commits").mkdir(exist_ok=True)
    (root / commit_file(shard)).write_bytes(content)


@pytest.mark.parametrize(("per_shard", "inner"), [(4, 4), (48, 16), (1024, 32), (7, 1)])
def test_small_arrays_have_the_largest_chunks_that_divide_32_and_the_shard(
    synthetic: Any, per_shard: int, inner: int
) -> None:
    layouts = array_layouts(synthetic.spec(samples_per_shard=per_shard))
    assert {name: layout.inner for name, layout in layouts.items()} == {
        "maps": 1,
        "scale": inner,
        "words": inner,
        "kept": inner,
        "image_embedding": 1,
    }
    assert {layout.shard for layout in layouts.values()} == {per_shard}


def test_files_of_a_shard_by_hand(synthetic: Any) -> None:
    spec = synthetic.spec(views=("full",))
    view = "views/full"
    arrays = {"maps/c.2.0.0.0.0", "scale/c.2.0.0", "words/c.2.0", "kept/c.2.0.0", "image_embedding/c.2.0"}
    assert shard_files(spec, "zarr", 2) == {"index/000002.parquet", *(f"{view}/{array}" for array in arrays)}
    assert shard_files(spec, "webdataset", 2) == {"index/000002.parquet", "shards/000002.tar"}


def test_the_zarr_metadata_are_the_fixed_files_beside_the_vocabulary(synthetic: Any) -> None:
    spec = synthetic.spec()
    metadata = zarr_metadata(spec)
    vocabulary = fixed_files(spec, "webdataset")
    assert vocabulary == {"vocabulary.json", "vocabulary.npy"}
    assert fixed_files(spec, "zarr") == {*metadata, *vocabulary}
    words = json.loads(metadata["views/hflip/words/zarr.json"])
    assert (words["shape"], words["data_type"], words["fill_value"]) == ([10, 3], "int32", -1)
    assert json.loads(metadata["views/zarr.json"])["node_type"] == "group"


def test_a_record_comes_back_and_its_bytes_know_no_order_of_quarantine(
    synthetic: Any, layout: str, tmp_path: Path
) -> None:
    spec = synthetic.spec()
    made = record(spec, layout, quarantined={6: "too small", 4: "cannot be decoded"})
    again = dataclasses.replace(made, quarantined=dict(reversed(made.quarantined.items())), kl_sum=0.5 + 1e-9)
    assert again.to_bytes() == made.to_bytes()
    write(tmp_path, made.to_bytes())
    assert CommitRecord.load(tmp_path, spec, layout, 1) == made


def test_what_is_not_the_record_of_this_shard_is_refused_with_a_remedy(synthetic: Any, tmp_path: Path) -> None:
    spec = synthetic.spec()
    made = record(spec)
    with pytest.raises(CorruptTargetsError, match=r"delete .*commits/000001\.json and run the same extract command"):
        CommitRecord.load(tmp_path, spec, "zarr", 1)  # missing
    changes: tuple[dict[str, Any], ...] = (
        {"shard": 0},
        {"samples": 3},
        {"quarantined": {8: "of the next shard"}},
        {"kl_rows": 1.5},
        {"files": {**made.files, "index/000000.parquet": FileRecord.of(b"")}},
    )
    for change in changes:
        write(tmp_path, dataclasses.replace(made, **change).to_bytes())
        with pytest.raises(CorruptTargetsError, match=r"is not a commit record of shard 1 of this cache\. To make"):
            CommitRecord.load(tmp_path, spec, "zarr", 1)
    write(tmp_path, made.to_bytes())
    with pytest.raises(CorruptTargetsError, match="is not a commit record"):
        CommitRecord.load(tmp_path, spec, "webdataset", 1)
    body = json.loads(made.to_bytes())
    del body["crc32c"]
    write(tmp_path, seal({**body, "samples": True}))
    with pytest.raises(CorruptTargetsError, match="is not a commit record"):
        CommitRecord.load(tmp_path, spec, "zarr", 1)


def test_records_of_files_are_exact() -> None:
    good = {"size": 3, "crc32c": "0123abcd"}
    assert parse_records({"a": good}) == {"a": FileRecord(size=3, crc32c="0123abcd")}
    for bad in ([good], {"a": [3]}, {"a": {**good, "size": -1}}, {"a": {**good, "more": 0}}, {"a": {"size": 3}}):
        assert parse_records(bad) is None


def test_a_stream_says_at_the_end_whether_the_file_was_the_recorded_one(tmp_path: Path) -> None:
    path, content = tmp_path / "file", bytes(range(256)) * 20
    path.write_bytes(content)
    with CheckedStream(path, FileRecord.of(content)) as stream:
        assert stream.read(100) + stream.read(7) == content[:107]
        stream.finish()
        assert stream.read(1) == b""
    changed = content[:-1] + b"\0"
    with CheckedStream(path, FileRecord.of(changed)) as stream:
        assert stream.read() == content  # the same size: only the end can tell
        with pytest.raises(CorruptTargetsError, match=r"has crc32c [0-9a-f]{8}, recorded was [0-9a-f]{8}\."):
            stream.finish()
    with pytest.raises(CorruptTargetsError, match=r"has 5120 bytes, recorded were 5119\."):
        CheckedStream(path, FileRecord.of(content[:-1]))
    with pytest.raises(CorruptTargetsError, match=r"Cannot read .*absent: No such file"):
        CheckedStream(tmp_path / "absent", FileRecord.of(b""))


def test_committed_shards_and_their_sum(synthetic: Any, tmp_path: Path) -> None:
    spec = synthetic.spec()
    assert committed_shards(tmp_path, spec) == []
    for name in ("000002.json", "000000.json", "000003.json", "1.json", "000001.json.tmp"):  # 3 shards: 0, 1, 2
        (tmp_path / "commits").mkdir(exist_ok=True)
        (tmp_path / "commits" / name).touch()
    assert committed_shards(tmp_path, spec) == [0, 2]
    file = FileRecord(size=300, crc32c="00000000")
    records = [
        record(spec, shard=0, files={"a": file, "b": file}, kl_sum=0.5, kl_rows=3, quarantined={2: "small"}),
        record(spec, shard=2, files={"c": file}, kl_sum=0.25, kl_rows=0),
    ]
    summary = summarise(spec, records)
    assert (summary.samples, summary.quarantined, summary.bytes_per_sample) == (6, 1, 150.0)  # 4 + 2 samples, 900 bytes
    assert summary.codec_kl == 0.25  # 0.75 nats of 3 rows
    empty = summarise(spec, [])
    assert (empty.bytes_per_sample, empty.codec_kl) == (0, 0)

"""Index columns behave as lists do, hold no Python object a sample, and come from parts that nobody changed."""

from __future__ import annotations

import dataclasses
import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError
from lfi_pipeline.core.io import FileRecord
from lfi_pipeline.targets import DatasetSpec, TargetStore
from lfi_pipeline.targets.index import (
    MOST_PART_BYTES,
    TarPathColumn,
    TupleColumn,
    ValueColumn,
    index_part,
    index_schema,
    joined,
    parse_part,
)

LABELS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), max_size=12)


@given(st.lists(st.one_of(st.none(), st.text()), max_size=12), LABELS, st.slices(12), st.data())
@settings(max_examples=60)
def test_columns_behave_as_lists(
    texts: list[str | None], labels: list[list[int]], cut: slice, data: st.DataObject
) -> None:
    half = len(labels) // 2
    kind = pa.list_(pa.int32())
    tuples = TupleColumn(joined([pa.array(labels[:half], kind), pa.array(labels[half:], kind)]))
    values: ValueColumn[str | None] = ValueColumn(pa.array(texts, pa.string()))
    places = np.array([[100 * i, i] if i % 3 else [-1, -1] for i in range(len(labels))]).reshape(-1, 2)
    made = TarPathColumn(places, per_shard=5)
    for column, expected in (
        (values, texts),
        (tuples, [tuple(each) for each in labels]),
        (made, [f"shards/{i // 5:06d}.tar#{100 * i}+{i}" if i % 3 else "" for i in range(len(labels))]),
    ):
        assert column == expected
        assert list(column) == expected  # type: ignore[call-overload]
        assert len(column) == len(expected)
        assert column[cut] == expected[cut]
        assert column != [*expected, "more"]
        for position in (len(expected), -len(expected) - 1):
            with pytest.raises(IndexError):
                column[position]
        if expected:
            position = data.draw(st.integers(-len(expected), len(expected) - 1))
            assert column[position] == column[np.int64(position)] == expected[position]


def test_many_shards_are_read_in_order(synthetic: Any, tmp_path: Path) -> None:
    from lfi_pipeline.targets.commits import CommitRecord
    from lfi_pipeline.targets.index import TargetIndex

    spec = synthetic.spec(
        dataset=DatasetSpec(name="n", split="s", classes=("a", "b"), listing_sha256="", samples=199),
        samples_per_shard=2,
    )
    (tmp_path / "index").mkdir()
    records = {}
    for shard in range(spec.shards):
        positions = spec.shard_range(shard)
        plan = [dataclasses.replace(synthetic.plan()[0], key=str(i), labels=(i % 2,) * (i % 3)) for i in positions]
        part = index_part(plan, {}, np.array(positions, np.uint32), None, {})
        (tmp_path / f"index/{shard:06d}.parquet").write_bytes(part)
        records[shard] = CommitRecord(
            shard=shard,
            samples=len(positions),
            quarantined={},
            files={f"index/{shard:06d}.parquet": FileRecord.of(part)},
            kl_sum=0.0,
            kl_rows=0,
        )
    index = TargetIndex(tmp_path, spec, "zarr", records)
    assert index.keys == [str(i) for i in range(199)]
    assert index.labels == [(i % 2,) * (i % 3) for i in range(199)]
    assert index.image_crc32c.tolist() == list(range(199))
    assert index.image_size.tolist() == [-1] * 199
    assert isinstance(index.keys.arrow, pa.Array)  # type: ignore[attr-defined]


def test_a_part_is_compared_with_its_commit_record(both: dict[str, Path], copy: Path, layout: str) -> None:
    shutil.copyfile(copy / "index/000001.parquet", copy / "index/000000.parquet")  # sound, but of another shard
    store = TargetStore.open(copy)
    with pytest.raises(CorruptTargetsError, match=r"000000\.parquet: it has .*delete .*000000\.json"):
        _ = store.index.keys


def test_labels_without_a_class_are_refused(synthetic: Any, tmp_path: Path) -> None:
    writer = synthetic.open_writer(tmp_path / "targets")
    writer._plan = [dataclasses.replace(sample, labels=(2,)) for sample in synthetic.plan()]
    for shard in writer.pending_shards():
        writer.commit(shard, synthetic.payload(writer.spec, shard))
    with pytest.raises(CorruptTargetsError, match=r"labels outside 0\.\.1"):
        _ = TargetStore.open(tmp_path / "targets").index.labels


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_parts_of_another_shape_are_refused(synthetic: Any, finished: Path) -> None:
    spec = synthetic.spec()
    names = index_schema(spec, "zarr").names
    table = pq.read_table(finished / "index/000000.parquet")
    assert parse_part(parquet(table), spec, "zarr", 0, names).equals(table)
    nothing = table.set_column(0, "key", pa.array([None] * 4, pa.string()))
    for message, other in (
        ("rows", table.slice(1)),
        ("columns", table.drop_columns(["crc32c"])),
        ("columns", table.append_column("more", pa.array([1] * 4))),
        ("columns", table.set_column(2, "size", pa.array([1.0] * 4))),
        ("empty entries", nothing),
    ):
        with pytest.raises(ValueError, match=message):
            parse_part(parquet(other), spec, "zarr", 0, names)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_forged_part_ends_in_one_kind_of_error(synthetic: Any, finished: Path, data: st.DataObject) -> None:
    spec, whole = synthetic.spec(), (finished / "index/000000.parquet").read_bytes()
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(whole), len(whole) - 3, 12, 4, 0]))
    try:
        table = parse_part(bytes(changed[:cut]), spec, "zarr", 0, index_schema(spec, "zarr").names)
    except ValueError:
        return
    table.to_pylist()


def test_an_index_can_be_sent_to_a_spawned_worker(both: dict[str, Path], layout: str) -> None:
    index = TargetStore.open(both[layout]).index
    columns = (index.keys, index.paths, index.labels)
    again, sent = pickle.loads(pickle.dumps((index, columns)))  # noqa: S301
    assert sent == columns
    assert again.domains == index.domains


def forged(spec: Any, **columns: pa.Array) -> bytes:
    """The index part of a shard, with other columns than were written."""
    rows = len(spec.shard_range(0))
    plain = {
        "key": pa.array([f"k{i}" for i in range(rows)]),
        "path": pa.array([f"{i}.png" for i in range(rows)]),
        "size": pa.array([1] * rows, pa.int64()),
        "crc32c": pa.array([1] * rows, pa.uint32()),
        "labels": pa.array([[0]] * rows, pa.list_(pa.int32())),
        "domain": pa.array([""] * rows),
        "caption": pa.array([f"{i} cats" for i in range(rows)]),
        "quarantine": pa.nulls(rows, pa.string()),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(plain | columns, schema=index_schema(spec, "zarr")), sink, compression="zstd")
    return sink.getvalue()


def test_a_small_part_that_decodes_to_gigabytes_is_refused_before_it_is_decoded(synthetic: Any) -> None:
    spec = synthetic.spec()
    rows = len(spec.shard_range(0))
    every = index_schema(spec, "zarr").names
    assert parse_part(forged(spec), spec, "zarr", 0, every).num_rows == rows
    long = "x" * (MOST_PART_BYTES // rows + 1)
    bombs = {
        "one text for all rows": {"caption": pa.array([long] * rows)},
        "another text for each": {"caption": pa.array([f"{i}{long}" for i in range(rows)])},
        "paths": {"path": pa.array([long] * rows)},
        "labels": {"labels": pa.ListArray.from_arrays([0, *[2**20] * rows], pa.array(np.zeros(2**20, np.int32)))},
    }
    for name, columns in bombs.items():
        data = forged(spec, **columns)
        assert len(data) < 1_000_000, name
        with pytest.raises(ValueError, match=r"than \d samples can have"):
            parse_part(data, spec, "zarr", 0, every)


def test_texts_that_a_reader_would_refuse_are_not_written(synthetic: Any) -> None:
    sample = dataclasses.replace(synthetic.plan()[0], caption="x" * (MOST_PART_BYTES + 1))
    with pytest.raises(ConfigError, match=r"captions of a shard of 1 samples must take at most 64 MiB"):
        index_part([sample], {}, np.zeros(1, np.uint32), None, {})


def test_a_caption_of_many_rows_comes_back(synthetic: Any) -> None:
    """Texts that are written once for many rows are measured, and then read as they were."""
    spec = synthetic.spec()
    rows = len(spec.shard_range(0))
    captions = ["y" * (MOST_PART_BYTES // rows - 100)] * (rows - 1) + ["cat"]
    table = parse_part(forged(spec, caption=pa.array(captions)), spec, "zarr", 0, ["caption"])
    assert table["caption"].type == pa.string()
    assert table["caption"].to_pylist() == captions

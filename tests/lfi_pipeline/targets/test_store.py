"""Targets come back as they were written, through tensorstore, zarr-python, and forked or spawned workers."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from torch.utils.data import DataLoader

from lfi_pipeline.core.errors import (
    CorruptTargetsError,
    IncompleteTargetsError,
    TargetsError,
    UnknownNameError,
)
from lfi_pipeline.targets import TargetStore, codec_kl, decode_maps
from lfi_pipeline.targets.store import checked_image, image_present

FIELDS = ("maps", "scale", "words", "kept", "image_embedding")


def test_what_was_written_is_read(synthetic: Any, finished: Path) -> None:
    store = TargetStore.open(finished)
    for view in ("full", "hflip"):
        for shard in range(3):
            payload = synthetic.payload(store.spec, shard)
            written = payload.views[view]
            for row, position in enumerate(store.spec.shard_range(shard)):
                sample = store.read(position, view)
                if row in payload.quarantined:
                    assert (sample.words == -1).all()
                    assert not any(getattr(sample, name).any() for name in FIELDS if name != "words")
                    continue
                present = written.words[row] >= 0
                decoded = decode_maps(sample.maps, sample.scale, store.spec.codec.name)
                assert codec_kl(written.maps[row][:, present], decoded[:, present]) < 1e-3
                assert (decoded[:, ~present] == 0).all()
                np.testing.assert_array_equal(sample.words, written.words[row])
                np.testing.assert_array_equal(sample.image_embedding, written.image_embedding[row].astype("f2"))
                kept = np.where(present, written.kept[row], 0).astype(np.float16)
                np.testing.assert_array_equal(sample.kept, kept)


def test_read_many_stacks_reads_in_the_order_asked(finished: Path) -> None:
    store = TargetStore.open(finished)
    positions = [9, 0, 3, 0, 7]
    batch = store.read_many(positions, "hflip")
    for row, position in enumerate(positions):
        one = store.read(position, "hflip")
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(batch, name)[row], getattr(one, name))
    assert store.read_many([]).maps.shape == (0, 2, 3, 5, 6)


def test_plain_zarr_reads_the_same(finished: Path) -> None:
    store = TargetStore.open(finished)
    group = zarr.open_group(finished, mode="r")
    for view in ("full", "hflip"):
        batch = store.read_many(range(10), view)
        for name in FIELDS:
            array = group[f"views/{view}/{name}"]
            assert isinstance(array, zarr.Array)
            np.testing.assert_array_equal(array[:], getattr(batch, name))


def test_index_and_vocabulary(synthetic: Any, finished: Path) -> None:
    store = TargetStore.open(finished)
    plan, vocabulary = synthetic.plan(), synthetic.vocabulary()
    index = store.index
    assert len(index) == len(store) == 10
    assert index.keys == [sample.key for sample in plan]
    assert index.paths == [sample.path for sample in plan]
    assert index.labels == [sample.labels for sample in plan]
    assert index.domains == ["photo"] * 10
    assert index.captions == [sample.caption for sample in plan]
    checksums = [google_crc32c.value(synthetic.image(i)) for i in range(10)]
    assert index.image_crc32c.tolist() == [*checksums[:5], 0, *checksums[6:]]
    assert index.image_size.tolist() == [-1 if i == 5 else len(synthetic.image(i)) for i in range(10)]
    assert np.flatnonzero(index.quarantined).tolist() == [5]
    assert index.reasons[5] == "cannot be decoded"
    assert index.reasons[4] is None
    assert store.usable.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert store.vocabulary.words == vocabulary.words
    assert store.vocabulary.embeddings.dtype == np.float32
    np.testing.assert_array_equal(store.vocabulary.embeddings, vocabulary.embeddings.astype(np.float32))
    assert store.spec == synthetic.spec()


def test_data_root_is_recorded_and_overridden(finished: Path) -> None:
    assert TargetStore.open(finished).data_root == Path("/data/scenes")
    assert TargetStore.open(finished, data_root="/elsewhere").data_root == Path("/elsewhere")


def test_wrong_names_and_positions(finished: Path) -> None:
    store = TargetStore.open(finished)
    with pytest.raises(UnknownNameError, match="view 'vflip'"):
        store.read(0, "vflip")
    for position in (-1, 10):
        with pytest.raises(IndexError, match=r"position must be in 0\.\.9"):
            store.read(position)


def test_what_is_not_a_cache_is_described(tmp_path: Path) -> None:
    with pytest.raises(TargetsError, match="it does not exist"):
        TargetStore.open(tmp_path / "absent")
    with pytest.raises(TargetsError, match="it is empty"):
        TargetStore.open(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(TargetsError, match=r"it holds photo\.jpg\. A cache holds manifest\.json"):
        TargetStore.open(tmp_path)


def test_missing_shards(synthetic: Any, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    synthetic.extract(path, limit=2)
    with pytest.raises(IncompleteTargetsError, match=r"2 of 3 shards\. Run the same extract command again"):
        TargetStore.open(path)
    store = TargetStore.open(path, require_complete=False)
    assert store.usable.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert store.index.keys[7:] == ["007", "", ""]
    store.read(7)
    with pytest.raises(IncompleteTargetsError, match="Sample 8 lies in shard 2"):
        store.read_many([0, 8])


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("gone", [False, True])
def test_damage_names_shard_array_and_sample(finished: Path, tmp_path: Path, name: str, gone: bool) -> None:
    path = tmp_path / "targets"
    shutil.copytree(finished, path)
    (file,) = (path / "views/full" / name).glob("c.2.*")
    if gone:
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[3] ^= 4
        file.write_bytes(data)
    store = TargetStore.open(path)
    store.read(0)
    with pytest.raises(CorruptTargetsError, match=rf"shard 2, array full/{name}, sample 8 of .*delete .*000002"):
        store.read_many([0, 8])


def test_damaged_records_are_refused(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    shutil.copytree(finished, path)
    record = path / "commits/000001.json"
    record.write_text(record.read_text().replace("4", "5", 1))
    with pytest.raises(CorruptTargetsError, match=r"000001\.json does not match its checksum"):
        TargetStore.open(path)


def test_damaged_index_and_vocabulary_are_refused(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    shutil.copytree(finished, path)
    part = path / "index/000000.parquet"
    data = bytearray(part.read_bytes())
    data[40] ^= 1  # inside the pages of the first column
    part.write_bytes(data)
    (path / "vocabulary.npy").write_bytes(b"")
    (path / "classes.json").unlink()
    store = TargetStore.open(path)
    with pytest.raises(CorruptTargetsError, match=r"Cannot read .*000000\.parquet"):
        _ = store.index.keys
    with pytest.raises(CorruptTargetsError, match=r"vocabulary\.npy has 0 bytes"):
        _ = store.vocabulary
    with pytest.raises(CorruptTargetsError, match=r"Cannot read .*classes\.json"):
        _ = store.zero_shot


def test_pickling_sends_only_the_place(finished: Path) -> None:
    store = TargetStore.open(finished, data_root="/elsewhere")
    store.read(0)
    sent = pickle.dumps(store)
    assert len(sent) < 500
    again = pickle.loads(sent)  # noqa: S301
    assert again.data_root == Path("/elsewhere")
    np.testing.assert_array_equal(again.read(3).maps, store.read(3).maps)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_loader_workers_read_after_the_parent_did(both: dict[str, Path], layout: str, method: str) -> None:
    store = TargetStore.open(both[layout])
    expected = store.read_many(range(10), "full")
    loader = DataLoader(
        range(10),  # type: ignore[arg-type]
        batch_size=5,
        collate_fn=store.read_many,
        num_workers=1,
        multiprocessing_context=method,
        timeout=60,
    )
    batches = list(loader)
    assert len(batches) == 2
    for name in FIELDS:
        found = np.concatenate([getattr(batch, name) for batch in batches])
        np.testing.assert_array_equal(found, getattr(expected, name))


def test_both_layouts_read_alike(synthetic: Any, both: dict[str, Path], pictures: Path) -> None:
    zarr_store, tar_store = (TargetStore.open(both[layout]) for layout in ("zarr", "webdataset"))
    for view in ("full", "hflip"):
        one, other = zarr_store.read_many([9, 5, 0, 5, 3], view), tar_store.read_many([9, 5, 0, 5, 3], view)
        for name in FIELDS:
            found, expected = getattr(other, name), getattr(one, name)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(getattr(tar_store.read(3, view), name), expected[4])
    assert tar_store.read_many([]).maps.shape == (0, 2, 3, 5, 6)
    for column in ("keys", "source_paths", "labels", "domains", "captions", "reasons"):
        assert getattr(zarr_store.index, column) == getattr(tar_store.index, column)
    assert zarr_store.data_root == zarr_store.source_root == tar_store.source_root == pictures
    assert tar_store.data_root == both["webdataset"]
    assert TargetStore.open(both["webdataset"], data_root="/elsewhere").data_root == both["webdataset"]


def test_paths_of_the_webdataset_layout_name_the_bytes_of_the_image(synthetic: Any, both: dict[str, Path]) -> None:
    store = TargetStore.open(both["webdataset"])
    for position, path in enumerate(store.index.paths):
        if position == 5:
            assert path == ""
            continue
        file, _, place = path.partition("#")
        offset, size = map(int, place.split("+"))
        assert file == f"shards/{position // 4:06d}.tar"
        assert (store.data_root / file).read_bytes()[offset : offset + size] == synthetic.image(position)
        image, crc32c = synthetic.image(position), int(store.index.image_crc32c[position])
        assert checked_image(store.data_root, path, crc32c, "key") == image
        assert image_present(store.data_root, path)


@pytest.mark.parametrize("path", ["../x.jpg", "/etc/passwd", "a/../../x", "../a.tar#0+5", "/a.tar#0+5", "a\0b", ""])
def test_paths_that_lead_out_of_the_data_root_are_refused(tmp_path: Path, path: str) -> None:
    assert not image_present(tmp_path, path)
    with pytest.raises(CorruptTargetsError, match="cannot be read"):
        checked_image(tmp_path, path, 0, "key")


def test_damage_in_a_tar_names_shard_view_and_sample(both: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "targets"
    shutil.copytree(both["webdataset"], path)
    tar = path / "shards/000002.tar"
    offset = TargetStore.open(path).index.read_part(2, ["view.full.offset"]).to_pydict()["view.full.offset"][1]
    data = bytearray(tar.read_bytes())
    data[offset + 9] ^= 4
    tar.write_bytes(data)
    store = TargetStore.open(path)
    store.read(8)
    with pytest.raises(CorruptTargetsError, match=r"shard 2, view full, sample 9 of .*crc32c.*delete .*000002"):
        store.read_many([0, 9])
    tar.write_bytes(data[: offset + 2])
    with pytest.raises(CorruptTargetsError, match="sample 9"):
        store.read(9)


def test_incomplete_caches_of_the_webdataset_layout(synthetic: Any, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    writer = synthetic.open_writer(path, layout="webdataset")
    for shard in (2, 0):
        writer.commit(shard, synthetic.payload(writer.spec, shard))
    store = TargetStore.open(path, require_complete=False)
    assert store.usable.tolist() == [0, 1, 2, 3, 8, 9]
    assert store.index.keys == ["000", "001", "002", "003", "", "", "", "", "008", "009"]
    assert store.index.labels[4:9] == [(), (), (), (), (0,)]
    assert store.index.paths[4] == ""
    assert store.index.reasons[5] is None
    assert store.index.image_crc32c.tolist()[4:8] == [0] * 4
    with pytest.raises(IncompleteTargetsError, match="Sample 4 lies in shard 1"):
        store.read(4)


def test_words_alone_are_those_of_whole_samples(finished: Path) -> None:
    store = TargetStore.open(finished)
    positions = store.usable[::-1]
    assert np.array_equal(store.read_words(positions), store.read_many(positions).words)
    with pytest.raises(IndexError):
        store.read_words([len(store)])

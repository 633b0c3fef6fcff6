"""Streaming gives every usable sample once an epoch, equal to random access, and nothing that is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError, UnknownNameError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.stream import TargetStream

USABLE = [0, 1, 2, 3, 4, 6, 7, 8, 9]


@pytest.fixture
def store(both: dict[str, Path]) -> TargetStore:
    return TargetStore.open(both["webdataset"])


def positions(stream: TargetStream) -> list[int]:
    return [sample.position for sample in stream]


def test_samples_equal_random_access(synthetic: Any, store: TargetStore) -> None:
    stream = TargetStream(store, views=("full", "hflip"), seed=3)
    for sample in stream:
        assert sample.key == store.index.keys[sample.position]
        assert sample.labels == store.index.labels[sample.position]
        assert sample.image == synthetic.image(sample.position)
        assert sample.targets.keys() == {"full", "hflip"}
        for view, targets in sample.targets.items():
            expected = store.read(sample.position, view)
            for name in ("maps", "scale", "words", "kept", "image_embedding"):
                np.testing.assert_array_equal(getattr(targets, name), getattr(expected, name))
                assert getattr(targets, name).flags.writeable
    assert sorted(positions(stream)) == USABLE
    assert {sample.targets == {} for sample in TargetStream(store, views=())} == {True}


def test_the_order_depends_on_seed_and_epoch_alone(store: TargetStore) -> None:
    stream = TargetStream(store, views=(), seed=1)
    first = positions(stream)
    assert first == positions(stream) == positions(TargetStream(store, views=(), seed=1))
    others = []
    for epoch in range(1, 6):
        stream.set_epoch(epoch)
        others.append(positions(stream))
        assert sorted(others[-1]) == USABLE
    assert len({tuple(order) for order in [first, *others]}) > 3
    assert positions(TargetStream(store, views=(), seed=2)) not in ([], USABLE)
    assert positions(TargetStream(store, views=(), shuffle=0)) == USABLE


def test_shards_too_are_shuffled(store: TargetStore) -> None:
    starts = {positions(TargetStream(store, views=(), shuffle=1, seed=seed))[0] for seed in range(20)}
    assert starts == {0, 4, 8}


@pytest.mark.parametrize("start", [0, 1, 5, 8, 9, 12])
def test_a_stopped_run_goes_on_where_it_was(store: TargetStore, start: int) -> None:
    whole = positions(TargetStream(store, views=(), seed=4, epoch=2))
    assert positions(TargetStream(store, views=(), seed=4, epoch=2, start=start)) == whole[start:]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_share_an_epoch(store: TargetStore, workers: int) -> None:
    stream = TargetStream(store, seed=5)
    loader = DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=_position, timeout=60)
    for epoch in range(2):
        stream.set_epoch(epoch)
        assert sorted(loader) == USABLE


def _position(sample: Any) -> int:
    return int(sample.position)


def test_nodes_share_an_epoch(store: TargetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        own = positions(TargetStream(store, views=(), seed=5))
        assert 0 < len(own) < len(USABLE)
        found += own
    assert sorted(found) == USABLE


def test_one_flipped_bit_anywhere_in_a_tar_is_refused(both: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "targets"
    shutil.copytree(both["webdataset"], path)
    tar = path / "shards/000001.tar"
    whole = tar.read_bytes()
    stream = TargetStream(TargetStore.open(path), views=("full", "hflip"), shuffle=0)
    for place in [*range(0, len(whole), 97), 0, 124, 156, 257, 511, len(whole) - 1, len(whole) - 1024]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        tar.write_bytes(flipped)
        with pytest.raises(CorruptTargetsError, match=r"Cannot read shard 1, .*delete .*000001\.json"):
            positions(stream)
    for shorter in (whole[:-1], whole[:512], b""):
        tar.write_bytes(shorter)
        with pytest.raises(CorruptTargetsError, match="bytes, recorded were"):
            positions(stream)
    tar.unlink()
    with pytest.raises(CorruptTargetsError, match=r"Cannot read .*000001\.tar: No such file"):
        positions(stream)


def test_a_worker_reports_damage_as_what_it_is(both: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "targets"
    shutil.copytree(both["webdataset"], path)
    data = bytearray((path / "shards/000000.tar").read_bytes())
    data[600] ^= 1
    (path / "shards/000000.tar").write_bytes(data)
    stream = TargetStream(TargetStore.open(path), views=())
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="spawn", timeout=60)
    with pytest.raises(CorruptTargetsError, match="shard 0"):
        list(loader)


def test_what_cannot_be_streamed(both: dict[str, Path], store: TargetStore) -> None:
    with pytest.raises(ConfigError, match=r"layout zarr.*lfi pack"):
        TargetStream(TargetStore.open(both["zarr"]))
    with pytest.raises(UnknownNameError, match="view 'vflip'"):
        TargetStream(store, views=("vflip",))
    with pytest.raises(ConfigError, match="start must be 0 or more"):
        TargetStream(store, start=-1)

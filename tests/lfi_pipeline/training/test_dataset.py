"""A cache as a torch data set: samples whose maps are those of the cache, loaders that can be taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lfi_pipeline.core.errors import ConfigError, TargetsError
from lfi_pipeline.data.images import read_image
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.training.data import Batch, TargetImages
from lfi_pipeline.training.dataset import TargetDataset
from lfi_pipeline.training.sampler import Ticket


@pytest.fixture
def targets(tiny_targets: Path) -> TargetDataset:
    return TargetDataset(tiny_targets, image_size=64, grid=(8, 8), seed=3)


def test_a_sample_is_the_whole_image_with_the_maps_of_the_cache(targets: TargetDataset, tiny_targets: Path) -> None:
    store = TargetStore.open(tiny_targets)
    position = int(store.usable[5])
    sample, stored = targets[5], store.read(position)
    maps = decode_maps(torch.from_numpy(stored.maps)[None], torch.from_numpy(stored.scale)[None], "uint8_sqrt")[0]
    image, _, _ = read_image(store.data_root, store.index.paths[position])
    assert sample.key == store.index.keys[position]
    assert np.array_equal(sample.image.numpy().transpose(1, 2, 0), np.asarray(image))  # 64 pixels on disk as well
    assert sample.words == tuple(store.vocabulary.words[word] for word in stored.words if word >= 0)
    assert sample.maps.keys() <= set(sample.words)
    for m, word in enumerate(sample.words):
        if word in sample.maps:
            whole = maps[:, m].sum((-2, -1), keepdim=True)  # 1, but for the codec's rounding
            torch.testing.assert_close(whole, torch.ones_like(whole), rtol=0, atol=1e-3)
            torch.testing.assert_close(sample.maps[word], maps[:, m] / whole, rtol=0, atol=1e-6)
    assert {i for i, one in enumerate(sample.label.tolist()) if one} == set(store.index.labels[position])


@pytest.mark.parametrize("size", [64, (64, 96), 224])
def test_maps_sum_to_one_on_any_grid(tiny_targets: Path, size: int | tuple[int, int]) -> None:
    targets = TargetDataset(tiny_targets, image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    sample = targets[0]
    assert sample.image.shape == (3, height, width)
    assert sample.maps
    for grid in sample.maps.values():
        assert grid.shape == (len(targets.store.spec.layers), height // 16, width // 16)
        torch.testing.assert_close(grid.sum((-2, -1)), torch.ones(len(grid)))


def test_what_is_held_out_is_not_in_it(tiny_targets: Path) -> None:
    store = TargetStore.open(tiny_targets)
    whole, rest = TargetDataset(tiny_targets), TargetDataset(tiny_targets, hold_out=("colour",))
    held_out = [store.index.domains[i] for i in store.usable.tolist()].count("colour")
    assert held_out
    assert len(rest) == len(whole) - held_out
    assert "colour" not in {store.index.domains[int(i)] for i in rest.positions}


def assert_same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.positions, b.positions)
    assert torch.equal(a.windows, b.windows)
    assert all(torch.equal(a.images[size], b.images[size]) for size in a.images)
    assert a.maps is not None
    assert b.maps is not None
    assert torch.equal(a.maps, b.maps)


def test_a_pass_shows_every_image_once_and_the_next_one_in_another_order(targets: TargetDataset) -> None:
    loader = targets.loader(8)
    first, second = ([position for batch in loader for position in batch.positions.tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(targets.positions.tolist())
    assert first != second
    assert len(loader) == 3


@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_a_loader_goes_on_where_its_state_was_taken(targets: TargetDataset, done: int) -> None:
    whole, again = targets.loader(8), targets.loader(8)
    batches = [batch for _ in range(2) for batch in whole]
    given: list[Batch] = []
    while len(given) < done:
        for batch in again:
            given.append(batch)
            if len(given) == done:
                break
    resumed = targets.loader(8)
    resumed.load_state_dict(again.state_dict())
    while len(given) < len(batches):
        given.extend(resumed)
    assert len(given) == len(batches)
    for a, b in zip(batches, given, strict=True):
        assert_same(a, b)


def test_workers_change_no_batch(targets: TargetDataset) -> None:
    for a, b in zip(targets.loader(8), targets.loader(8, workers=1), strict=True):
        assert_same(a, b)


def test_what_goes_wrong_in_a_worker_is_told_with_its_traceback(
    targets: TargetDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: TargetImages, tickets: Sequence[Ticket]) -> Batch:
        raise KeyError("no such thing")

    monkeypatch.setattr(TargetImages, "__getitems__", broken)
    loader = targets.loader(8, workers=1)
    with pytest.raises(RuntimeError, match=r"(?s)loader process met an error.*Traceback.*no such thing"):
        next(iter(loader))
    assert loader.state_dict() == {"epoch": 0, "step": 0}


def test_what_cannot_be_is_refused(tiny_targets: Path, tmp_path: Path, targets: TargetDataset) -> None:
    with pytest.raises(TargetsError):
        TargetDataset(tmp_path)
    with pytest.raises(ConfigError, match="image_size must be 1 or more"):
        TargetDataset(tiny_targets, image_size=0)
    with pytest.raises(ConfigError, match="batch_size must be 1 or more"):
        targets.loader(0)
    with pytest.raises(ConfigError, match="seed must be from 0"):
        TargetDataset(tiny_targets, seed=-1)

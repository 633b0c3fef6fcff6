"""Pointing game and mass-in-mask on examples that can be checked by eye, and on a real cache."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.evaluation.grounding import (
    grounded_words,
    mass_in_mask,
    peaks_in_mask,
    score,
    teacher_grounding,
)
from lfi_pipeline.targets import TargetStore, decode_maps


def one_hot(row: int, column: int, grid: tuple[int, int] = (4, 4)) -> Tensor:
    maps = torch.zeros(grid)
    maps[row, column] = 1
    return maps


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_peak_of_a_cell_lies_in_the_middle_of_that_cell() -> None:
    for row in range(4):
        for column in range(4):
            own = box(8 * row + 2, 8 * column + 2, 8 * row + 6, 8 * column + 6)
            maps = one_hot(row, column)[None]
            assert peaks_in_mask(maps, own[None]).tolist() == [True]
            assert peaks_in_mask(maps, ~own[None]).tolist() == [False]


def test_images_need_not_be_square() -> None:
    mask = box(0, 30, 10, 40, size=(20, 40))  # upper right
    assert peaks_in_mask(one_hot(0, 3)[None], mask[None]).tolist() == [True]
    assert peaks_in_mask(one_hot(3, 0)[None], mask[None]).tolist() == [False]
    assert peaks_in_mask(one_hot(0, 5, (2, 6))[None], mask[None]).tolist() == [True]


@pytest.mark.parametrize("seed", range(3))
def test_the_peak_is_that_of_the_bilinearly_upsampled_map(seed: int) -> None:
    """Nine pixels a cell: one of them lies in its very middle, so the peak among the pixels is exact."""
    maps = torch.rand(20, 4, 6, generator=torch.Generator().manual_seed(seed))
    inner = torch.zeros_like(maps)
    inner[:, 1:-1, 1:-1] = maps[:, 1:-1, 1:-1]  # at the border the upsampled map is flat from the middle outwards
    enlarged = F.interpolate(inner[:, None], (36, 54), mode="bilinear", align_corners=False)[:, 0]
    masks = enlarged == enlarged.amax((1, 2), keepdim=True)
    assert masks.sum((1, 2)).tolist() == [1] * 20
    assert peaks_in_mask(inner, masks).all()
    assert not peaks_in_mask(inner, ~masks).any()


def test_a_map_of_zeros_is_a_miss() -> None:
    assert peaks_in_mask(torch.zeros(1, 4, 4), torch.ones(1, 32, 32, dtype=torch.bool)).tolist() == [False]
    assert mass_in_mask(torch.zeros(1, 4, 4), torch.ones(1, 32, 32, dtype=torch.bool)).tolist() == [0]


def test_pairs_are_scored_each_on_its_own() -> None:
    maps = torch.stack([one_hot(0, 0), one_hot(0, 0), one_hot(3, 3)])
    masks = torch.stack([box(0, 0, 8, 8), box(8, 8, 16, 16), box(24, 24, 32, 32)])
    assert peaks_in_mask(maps, masks).tolist() == [True, False, True]
    assert mass_in_mask(maps, masks).tolist() == [1, 0, 1]


def test_mass_counts_a_cell_by_the_share_of_it_that_is_covered() -> None:
    maps = 0.75 * one_hot(0, 0) + 0.25 * one_hot(3, 3)
    assert mass_in_mask(maps[None], box(0, 0, 8, 4)[None]).item() == pytest.approx(0.75 / 2)
    assert mass_in_mask(maps[None], box(6, 6, 32, 32)[None]).item() == pytest.approx(0.75 / 16 + 0.25)


def test_mass_is_a_share_whatever_the_row_sums_to() -> None:
    maps = torch.stack([1.001 * one_hot(0, 0), 0.5 * one_hot(0, 0) + 0.5 * one_hot(3, 3), 4 * one_hot(0, 0)])
    masks = box(0, 0, 8, 8)[None].expand(3, -1, -1)
    assert mass_in_mask(maps, masks).tolist() == [1, 0.5, 1]


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (11, 7)])
def test_a_uniform_map_has_the_masks_share_of_the_image_as_mass(size: tuple[int, int]) -> None:
    """Exactly, also where cells do not end between pixels."""
    mask = torch.rand(size, generator=torch.Generator().manual_seed(0))[None] < 0.3
    uniform = torch.full((1, 4, 6), 1 / 24)
    assert mass_in_mask(uniform, mask).item() == pytest.approx(mask.float().mean().item(), abs=1e-6)


def test_a_cell_that_ends_inside_a_pixel_counts_its_part() -> None:
    mask = torch.tensor([[False, True, False]])  # three pixels, two cells: the middle pixel is half in each
    assert mass_in_mask(torch.tensor([[[1.0, 0.0]]]), mask[None]).item() == pytest.approx(1 / 3)


def test_chance_is_the_area_of_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3000, 4, 4, generator=generator)
    maps /= maps.sum((1, 2), keepdim=True)
    masks = box(8, 8, 24, 24)[None].expand(3000, -1, -1)
    result = score(list(maps), list(masks))
    assert result.area == pytest.approx(0.25)
    assert result.pointing == pytest.approx(0.25, abs=0.03)
    assert result.mass_in_mask == pytest.approx(0.25, abs=0.01)
    assert result.count == 3000


def test_perfect_maps_score_one_and_sizes_may_differ() -> None:
    masks = [box(0, 0, 8, 8), box(10, 0, 20, 10, size=(20, 40))]
    result = score([one_hot(0, 0), one_hot(1, 0, (2, 4))], masks)
    assert (result.pointing, result.count) == (1, 2)
    assert result.mass_in_mask == pytest.approx(1)
    assert result.area == pytest.approx((64 / 1024 + 100 / 800) / 2)


def test_nothing_to_score_is_not_a_number() -> None:
    result = score([], [])
    assert result.count == 0
    assert math.isnan(result.pointing)


@pytest.fixture
def val(scenes_root: Path) -> Dataset:
    return read_dataset("scenes", scenes_root, "val")


def expected_words(store: TargetStore, dataset: Dataset, least: int) -> set[tuple[int, str]]:
    """(position, class) of every word that is the name of a labelled class."""
    found = set()
    for position, sample in enumerate(dataset.samples):
        if len(sample.labels) < least:
            continue
        words = {store.vocabulary.words[i] for i in store.read(position).words.tolist() if i >= 0}
        found |= {(position, dataset.classes[label]) for label in sample.labels if dataset.classes[label] in words}
    return found


@pytest.mark.parametrize("least", [1, 2, 3])
def test_words_are_joined_to_the_masks_of_their_class(tiny_val_targets: Path, val: Dataset, least: int) -> None:
    store = TargetStore.open(tiny_val_targets)
    found = grounded_words(store, val, least_labels=least)
    named = [(word.position, store.vocabulary.words[store.read(word.position).words[word.row]]) for word in found]
    assert len(set(named)) == len(named) > 0
    assert set(named) == expected_words(store, val, least)
    for word, (position, name) in zip(found, named, strict=True):
        sample = val.samples[position]
        masks = [
            instance.mask(sample.height, sample.width)
            for instance in val.instances[sample.key]
            if val.classes[instance.label] == name
        ]
        assert np.array_equal(word.mask.numpy(), np.logical_or.reduce(masks))
        assert word.mask.any()
        assert not word.mask.all()


def test_classes_are_compared_with_words_as_in_training(tiny_val_targets: Path, val: Dataset) -> None:
    """A word is lower case with spaces, and a class may be `Stop_Sign`."""
    store = TargetStore.open(tiny_val_targets)
    written = replace(val, classes=tuple(f"_{name.title()}" for name in val.classes))
    expected, found = ([(w.position, w.row, w.label) for w in grounded_words(store, each)] for each in (val, written))
    assert found == expected


def test_fewer_labels_give_more_words(tiny_val_targets: Path, val: Dataset) -> None:
    store = TargetStore.open(tiny_val_targets)
    counts = [len(grounded_words(store, val, least_labels=least)) for least in (1, 2, 3)]
    assert counts[0] >= counts[1] >= counts[2] > 0
    assert all(len(val.samples[word.position].labels) >= 2 for word in grounded_words(store, val))


def test_masks_of_all_instances_of_a_class_are_united(tiny_val_targets: Path, val: Dataset) -> None:
    store = TargetStore.open(tiny_val_targets)
    word = grounded_words(store, val)[0]
    key = val.samples[word.position].key
    label = val.classes.index(store.vocabulary.words[store.read(word.position).words[word.row]])
    others = [instance for instance in val.instances[key] if instance.label != label]
    twin = replace(others[0], label=label)
    doubled = replace(val, instances={**val.instances, key: (*val.instances[key], twin)})
    again = next(w for w in grounded_words(store, doubled) if (w.position, w.row) == (word.position, word.row))
    sample = val.samples[word.position]
    assert np.array_equal(again.mask.numpy(), word.mask.numpy() | twin.mask(sample.height, sample.width))


def test_targets_of_another_split_are_refused_though_the_keys_agree(
    tiny_targets: Path, tiny_val_targets: Path, val: Dataset, scenes_root: Path
) -> None:
    """Every data set numbers each split from 1: joined by key alone, words would meet another picture's masks."""
    with pytest.raises(DatasetError, match=r"split val; it holds scenes, split train"):
        grounded_words(TargetStore.open(tiny_targets), val)
    train = read_dataset("scenes", scenes_root, "train")
    with pytest.raises(DatasetError, match=r"split train; it holds scenes, split val"):
        grounded_words(TargetStore.open(tiny_val_targets), train)


def test_a_sample_that_the_data_set_lacks_is_named(tiny_val_targets: Path, val: Dataset) -> None:
    fewer = replace(val, samples=val.samples[:-1])
    with pytest.raises(DatasetError, match=val.samples[-1].key):
        grounded_words(TargetStore.open(tiny_val_targets), fewer)


def test_nothing_to_point_at_is_an_error(tiny_val_targets: Path, val: Dataset) -> None:
    with pytest.raises(DatasetError, match="nothing to point at"):
        grounded_words(TargetStore.open(tiny_val_targets), val, least_labels=60)


@pytest.mark.parametrize("view", ["full", "hflip"])
def test_teacher_maps_are_scored_row_by_row(tiny_val_targets: Path, val: Dataset, view: str) -> None:
    store = TargetStore.open(tiny_val_targets)
    words = grounded_words(store, val)[::-1]
    maps = []
    for word in words:
        stored = store.read(word.position, view)
        maps.append(torch.from_numpy(decode_maps(stored.maps, stored.scale, store.spec.codec.name)[-1, word.row]))
    *_, result = teacher_grounding(store, words, view)
    assert result == score(maps, [word.mask for word in words])
    assert result.count == len(words)

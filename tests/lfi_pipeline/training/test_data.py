"""Batches: the same ticket gives the same bytes, and maps belong to what the student sees."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError, ImageReadError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.augment import DIRECTION_WORDS
from lfi_pipeline.data.config import Augmentation
from lfi_pipeline.data.images import read_image
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training import TrainConfig, data
from lfi_pipeline.training.data import (
    IMAGE_EMBEDDING,
    MAPS,
    Batch,
    ErrorsAsValues,
    PlainImages,
    TargetImages,
)
from lfi_pipeline.training.maps import MapResampler
from lfi_pipeline.training.sampler import ResumableBatchSampler, training_positions

SIZE = (64, 64)
MakeConfig = Callable[..., TrainConfig]
ALWAYS = Augmentation(scale=(1, 1), hflip=1)
NEVER = Augmentation(scale=(1, 1), hflip=0)


def images_of(config: TrainConfig) -> TargetImages:
    reads = {"none": frozenset[str](), "embedding": frozenset({IMAGE_EMBEDDING})}.get(
        config.objective, frozenset({MAPS})
    )
    data = config.data
    return TargetImages(TargetStore.open(data.targets), data, [SIZE], frozenset(reads))


def tensors(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch that mixes nothing, images of size `SIZE` among them."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)} | {"images": batch.images[SIZE]}


def assert_same(one: Batch, other: Batch) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        assert torch.equal(value, second[name]), name


def row(batch: Batch, number: int) -> Batch:
    rows = {name: value[number : number + 1] for name, value in tensors(batch).items()}
    return Batch(**rows | {"images": {SIZE: rows["images"]}})  # type: ignore[arg-type]


@pytest.mark.parametrize("maps", ["teacher", "shuffled"])
def test_a_ticket_gives_the_same_bytes_in_any_company(make_config: MakeConfig, maps: str) -> None:
    images = images_of(make_config(maps=maps))
    tickets = [(1, 5), (0, 7), (1, 20), (3, 5)]
    together = images.__getitems__(tickets)
    for number, ticket in enumerate(tickets):
        assert_same(images.__getitems__([ticket]), row(together, number))
    assert_same(images_of(make_config(maps=maps)).__getitems__(tickets), together)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(make_config: MakeConfig, workers: int) -> None:
    config = make_config(epochs=1)
    images = images_of(config)
    tickets = ResumableBatchSampler(np.arange(24), config.data)
    images.__getitems__([(0, 0)])  # handles opened before the fork must not be used after it
    loader = DataLoader(
        ErrorsAsValues(images), batch_sampler=tickets, num_workers=workers, collate_fn=lambda batch: batch
    )
    for expected, batch in zip(tickets, loader, strict=True):
        assert_same(batch, images.__getitems__(expected))


def test_epochs_and_seeds_augment_anew(make_config: MakeConfig) -> None:
    images = images_of(make_config())
    first = images.__getitems__([(0, 3)])
    assert not torch.equal(first.windows, images.__getitems__([(1, 3)]).windows)
    assert not torch.equal(first.windows, images_of(make_config(seed=1)).__getitems__([(0, 3)]).windows)


def test_an_objective_is_given_what_it_uses(make_config: MakeConfig) -> None:
    common = {"images", "labels", "windows", "positions"}
    given = {
        objective: tensors(images_of(make_config(objective=objective)).__getitems__([(0, 0), (0, 1)]))
        for objective in ("none", "embedding", "lfi")
    }
    assert given["none"].keys() == common
    assert given["embedding"].keys() == common | {"image_embedding"}
    assert given["lfi"].keys() == common | {"maps", "scale", "words"}
    for name in common:  # the controls share images, labels and crops
        assert torch.equal(given["none"][name], given["lfi"][name])
        assert torch.equal(given["none"][name], given["embedding"][name])


def test_labels_and_pixels_are_those_of_the_data_set(make_config: MakeConfig, scenes_root: Path) -> None:
    dataset = read_dataset("scenes", scenes_root, "train")
    batch = images_of(make_config(augmentation=NEVER)).__getitems__([(0, 4), (0, 11)])
    for number, position in enumerate((4, 11)):
        sample = dataset.samples[position]
        assert batch.labels[number].nonzero()[:, 0].tolist() == list(sample.labels)
        pixels = np.asarray(Image.open(scenes_root / sample.path).convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(batch.images[SIZE][number].numpy(), pixels)


def test_flipped_images_get_the_targets_of_the_flipped_view(make_config: MakeConfig) -> None:
    config = make_config(augmentation=Augmentation(scale=(1, 1), hflip=0.5))
    images, plain = images_of(config), images_of(make_config(augmentation=NEVER))
    tickets = [(0, position) for position in range(24)]
    batch, upright = images.__getitems__(tickets), plain.__getitems__(tickets)
    flipped = [torch.equal(batch.images[SIZE][i], upright.images[SIZE][i].flip(-1)) for i in range(24)]
    assert 0 < sum(flipped) < 24
    for i, flip in enumerate(flipped):
        stored = images.store.read(i, "hflip" if flip else "full")
        assert batch.maps is not None
        assert batch.scale is not None
        assert batch.words is not None
        assert np.array_equal(batch.maps[i].numpy(), stored.maps)
        assert np.array_equal(batch.scale[i].numpy(), stored.scale)
        assert batch.words[i].tolist() == stored.words.tolist()
    assert not np.array_equal(images.store.read(0, "hflip").maps, images.store.read(0).maps)


def test_flipped_images_get_the_embedding_of_the_flipped_view(make_config: MakeConfig) -> None:
    images = images_of(make_config(objective="embedding", augmentation=ALWAYS))
    batch = images.__getitems__([(0, 2)])
    assert batch.image_embedding is not None
    assert batch.image_embedding[0].tolist() == images.store.read(2, "hflip").image_embedding.tolist()


def words_of_direction(store: TargetStore) -> list[tuple[int, int]]:
    """(position, row) of every word of direction in the view `full`."""
    ids = [i for i, word in enumerate(store.vocabulary.words) if word in DIRECTION_WORDS]
    return [tuple(place) for place in np.argwhere(np.isin(store.read_many(range(24)).words, ids)).tolist()]


def test_mirrored_maps_are_mirrored_and_lose_words_of_direction(
    make_config: MakeConfig, full_only_targets: Path
) -> None:
    config = make_config(targets=full_only_targets, mirror_maps=True, augmentation=ALWAYS)
    images = images_of(config)
    tickets = [(0, position) for position in range(24)]
    mirrored = images.__getitems__(tickets)
    upright = images_of(replace(config, data=replace(config.data, augmentation=NEVER))).__getitems__(tickets)
    assert mirrored.maps is not None
    assert upright.maps is not None
    assert mirrored.words is not None
    assert upright.words is not None
    assert torch.equal(mirrored.maps, upright.maps.flip(-1))
    assert torch.equal(mirrored.images[SIZE], upright.images[SIZE].flip(-1))
    directions = words_of_direction(images.store)
    assert directions
    expected = upright.words.clone()
    for position, place in directions:
        expected[position, place] = -1
    assert torch.equal(mirrored.words, expected)


def test_the_stored_flipped_view_has_no_words_of_direction(make_config: MakeConfig) -> None:
    images = images_of(make_config(augmentation=ALWAYS))
    position, place = words_of_direction(images.store)[0]
    batch = images.__getitems__([(0, position)])
    assert batch.words is not None
    assert batch.words[0, place] == -1


def test_shuffled_maps_are_those_of_another_image_and_each_serves_once(make_config: MakeConfig) -> None:
    images = images_of(make_config(maps="shuffled", augmentation=NEVER))
    donors = images.source.donor.tolist()
    assert sorted(donors) == list(range(24))
    assert all(donor != position for position, donor in enumerate(donors))
    other = images_of(make_config(maps="shuffled", seed=1)).source.donor.tolist()
    assert donors != other

    batch = images.__getitems__([(0, position) for position in range(24)])
    assert batch.maps is not None
    assert batch.scale is not None
    assert batch.words is not None
    for position in range(24):
        own, given = images.store.read(position), images.store.read(donors[position])
        assert batch.words[position].tolist() == own.words.tolist()
        present = np.flatnonzero((given.scale > 0).all(0))
        for slot in range(len(own.words)):
            donor_row = present[slot % len(present)]
            assert np.array_equal(batch.maps[position, :, slot].numpy(), given.maps[:, donor_row])
            assert np.array_equal(batch.scale[position, :, slot].numpy(), given.scale[:, donor_row])


def test_shuffled_maps_leave_no_word_without_one_where_the_donor_has_a_gap(make_config: MakeConfig) -> None:
    """A mirrored donor has no map for its words of direction; the receiver's words must not lose theirs."""
    images = images_of(make_config(maps="shuffled", augmentation=ALWAYS))
    gaps = {position for position, _ in words_of_direction(images.store)}
    receivers = [position for position, donor in enumerate(images.source.donor.tolist()) if donor in gaps]
    assert receivers
    batch = images.__getitems__([(0, position) for position in receivers])
    assert batch.scale is not None
    assert (batch.scale > 0).all()


def test_shuffled_donors_stay_inside_the_training_domains(make_config: MakeConfig) -> None:
    images = images_of(make_config(maps="shuffled", hold_out=("grey",)))
    kept = training_positions(images.store, ("grey",)).tolist()
    assert {int(images.source.donor[position]) for position in kept} == set(kept)


def copy_of_the_data(scenes_root: Path, place: Path) -> tuple[Path, Path]:
    shutil.copytree(scenes_root / "train", place / "train")
    return place, place / "train" / "000000000003.png"


def test_a_changed_image_is_refused_by_name(make_config: MakeConfig, scenes_root: Path, tmp_path: Path) -> None:
    root, path = copy_of_the_data(scenes_root, tmp_path)
    config = make_config()
    images = TargetImages(TargetStore.open(config.data.targets, data_root=root), config.data, [SIZE], frozenset({MAPS}))
    images.__getitems__([(0, 2)])
    path.write_bytes((scenes_root / "train" / "000000000004.png").read_bytes())
    with pytest.raises(CorruptTargetsError, match=r"sample 000000000003.*not the image that the teacher saw"):
        images.__getitems__([(0, 2)])
    path.unlink()
    with pytest.raises(ImageReadError, match=r"000000000003\.png"):
        images.__getitems__([(0, 2)])


def test_an_error_in_a_worker_keeps_its_own_message(make_config: MakeConfig, scenes_root: Path, tmp_path: Path) -> None:
    root, path = copy_of_the_data(scenes_root, tmp_path)
    path.write_bytes(b"not the image")
    config = make_config(epochs=1)
    images = TargetImages(TargetStore.open(config.data.targets, data_root=root), config.data, [SIZE], frozenset({MAPS}))
    loader = DataLoader(ErrorsAsValues(images), batch_sampler=[[(0, 2)]], num_workers=1, collate_fn=lambda batch: batch)
    (error,) = list(loader)
    assert isinstance(error, ImageReadError)
    assert "Traceback" not in str(error)
    assert "000000000003.png" in str(error)


def test_a_pair_is_mixed_the_same_in_any_batch(make_config: MakeConfig) -> None:
    images = images_of(make_config(mixup=0.5, cutmix=1.0))
    tickets = [(0, position) for position in (3, 8, 1, 20, 7, 5)]
    together = images.__getitems__(tickets)
    assert together.mix is not None
    shares = together.mix.share.tolist()
    assert shares[0::2] == shares[1::2]
    assert len(set(shares)) == 3
    for first in (0, 2, 4):
        pair = images.__getitems__(tickets[first : first + 2])
        assert torch.equal(pair.images[SIZE], together.images[SIZE][first : first + 2])
        assert torch.equal(pair.labels, together.labels[first : first + 2])
    again = images.__getitems__([(1, position) for _, position in tickets])
    assert again.mix is not None
    assert not torch.equal(again.mix.share, together.mix.share)


def test_what_maps_leave_out_shows_the_partner(make_config: MakeConfig) -> None:
    """A cut image keeps the pixels where alpha is 1; it depends on its ticket and its partner's alone."""
    tickets = [(0, position) for position in range(6)]
    plain = images_of(make_config(objective="lfi")).__getitems__(tickets)
    cut = images_of(make_config(objective="lfi", mix="maps", mix_maps_prob=1.0))
    batch = cut.__getitems__(tickets)
    assert batch.mix is not None
    assert batch.mix.kept is not None
    kept = batch.mix.kept
    assert kept.shape[0] == 6
    assert (kept.amin((1, 2)) < 0.5).any()
    assert kept.amax((1, 2)).tolist() == [1] * 6
    field = torch.nn.functional.interpolate(kept[:, None], SIZE, mode="bilinear", antialias=True)
    own, other = plain.images[SIZE].float(), plain.images[SIZE][batch.mix.partner].float()
    torch.testing.assert_close(batch.images[SIZE].float(), own * field + other * (1 - field), atol=0.51, rtol=0)
    alone = cut.__getitems__(tickets[2:4])
    assert torch.equal(alone.images[SIZE], batch.images[SIZE][2:4])
    assert torch.equal(alone.labels, batch.labels[2:4])
    assert (batch.labels <= plain.labels + plain.labels[batch.mix.partner]).all()
    assert set(batch.labels.flatten().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("objective", ["none", "embedding"])
def test_maps_are_read_for_cutting_and_not_handed_on(make_config: MakeConfig, objective: str) -> None:
    batch = images_of(make_config(objective=objective, mix="maps")).__getitems__([(0, 0), (0, 1)])
    assert batch.maps is None
    assert (batch.image_embedding is not None) == (objective == "embedding")
    assert batch.mix is not None
    assert batch.mix.kept is not None


def test_flat_maps_cut_nothing_out(make_config: MakeConfig) -> None:
    config = make_config(objective="lfi", maps="uniform", mix="maps", mix_maps_prob=1.0)
    batch = images_of(config).__getitems__([(0, 0), (0, 1)])
    assert batch.mix is not None
    assert batch.mix.kept is not None
    assert (batch.mix.kept == 1).all()


def test_every_size_shows_the_same_part_of_the_image(make_config: MakeConfig) -> None:
    config = make_config()
    store = TargetStore.open(config.data.targets)
    both = TargetImages(store, config.data, [SIZE, (32, 32), SIZE], frozenset()).__getitems__([(0, 1), (0, 9)])
    assert set(both.images) == {SIZE, (32, 32)}
    alone = TargetImages(store, config.data, [(32, 32)], frozenset()).__getitems__([(0, 1), (0, 9)])
    assert torch.equal(both.images[32, 32], alone.images[32, 32])
    assert torch.equal(both.windows, alone.windows)


def test_changes_of_colour_leave_targets_and_crops_alone(make_config: MakeConfig) -> None:
    tickets = [(0, position) for position in range(8)]
    plain, changed = (images_of(make_config(randaugment=n)).__getitems__(tickets) for n in (0, 3))
    assert not torch.equal(plain.images[SIZE], changed.images[SIZE])
    assert plain.maps is not None
    assert changed.maps is not None
    assert torch.equal(plain.maps, changed.maps)
    assert torch.equal(plain.windows, changed.windows)


def test_images_for_scoring_are_whole(scenes_root: Path) -> None:
    dataset = read_dataset("scenes", scenes_root, "val")
    images = PlainImages(dataset, [(32, 48), (16, 16)])
    assert len(images) == 16
    pixels, labels, read = images[5]
    assert read is True
    assert {size: tuple(view.shape) for size, view in pixels.items()} == {(32, 48): (3, 32, 48), (16, 16): (3, 16, 16)}
    assert pixels[32, 48].dtype == torch.uint8
    assert labels.nonzero()[:, 0].tolist() == list(dataset.samples[5].labels)


def test_an_image_for_scoring_that_is_broken_is_black_and_said_so(scenes_root: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes_root, tmp_path / "scenes")
    dataset = read_dataset("scenes", tmp_path / "scenes", "val")
    (tmp_path / "scenes" / dataset.samples[5].path).write_bytes(b"not an image")
    pixels, labels, read = PlainImages(dataset, [(32, 48)])[5]
    assert read is False
    assert not pixels[32, 48].any()
    assert labels.any()


def test_drafts_keep_twice_the_pixels_that_are_seen(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def read(root: Path, path: str, least: int = 0) -> tuple[Image.Image, int, int]:
        asked.append(least)
        return read_image(root, path, least)

    monkeypatch.setattr(data, "read_image", read)
    for draft in (False, True):
        images_of(make_config(draft=draft, scale=[0.2, 0.5])).__getitems__([(0, 0), (1, 3)])
    plain, drafts = asked[:2], asked[2:]
    assert plain == [0, 0]
    side = images_of(make_config()).sizes[0][0]
    assert all(2 * side / 0.71 <= least <= 2 * side / 0.38 for least in drafts)  # of windows of 20 to 50 % of the area


def test_a_share_of_the_labels_is_chosen_by_key_and_weighs_as_much_as_all(make_config: MakeConfig) -> None:
    weights = {}
    for share in (0.2, 0.5, 1.0):
        config = make_config(label_share=share, augmentation=NEVER)
        batch = images_of(config).__getitems__([(0, position) for position in range(24)])
        again = images_of(make_config(label_share=share, seed=7)).__getitems__([(3, 5), (4, 2)])
        if share == 1:
            assert batch.label_weight is None
            continue
        assert batch.label_weight is not None
        assert again.label_weight is not None
        weights[share] = batch.label_weight
        assert batch.label_weight.mean().item() == pytest.approx(1)
        assert torch.equal(again.label_weight, batch.label_weight[[5, 2]])  # whatever the seed and the epoch
        assert len(set(batch.label_weight.tolist())) == 2
    assert (weights[0.2] > 0).sum() < (weights[0.5] > 0).sum() < 24
    assert ((weights[0.5] > 0) | (weights[0.2] == 0)).all()  # the larger share holds the smaller


def test_a_share_of_the_maps_leaves_the_others_without_any(make_config: MakeConfig) -> None:
    every = [(0, position) for position in range(24)]
    whole = images_of(make_config(augmentation=NEVER)).__getitems__(every)
    part = images_of(make_config(map_share=0.5, augmentation=NEVER)).__getitems__(every)
    assert whole.scale is not None
    assert part.scale is not None
    kept = (part.scale > 0).flatten(1).any(1)
    assert 0 < kept.sum() < 24
    assert torch.equal(part.scale[kept], whole.scale[kept])
    assert not part.scale[~kept].any()
    assert torch.equal(part.labels, whole.labels)
    cut = MapResampler(part, "uint8_sqrt").on((8, 8))
    assert not cut.kept[~kept].any()
    assert not cut.maps[~kept].any()


@pytest.mark.parametrize("of", ["label_share", "map_share"])
def test_a_share_that_holds_no_image_is_refused(make_config: MakeConfig, of: str) -> None:
    with pytest.raises(ConfigError, match="must hold one whose"):
        images_of(make_config(**{of: 1e-6}))


def test_labels_of_a_share_cannot_be_mixed(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="without a label to mix"):
        make_config(label_share=0.5, cutmix=1.0)

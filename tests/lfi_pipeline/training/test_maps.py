from __future__ import annotations

import numpy as np
import pytest
import torch

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.config import Augmentation
from lfi_pipeline.objectives import StepContext
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.training.data import MAPS, TargetImages
from lfi_pipeline.training.learner import Learner
from lfi_pipeline.training.maps import MapResampler, TrueMasks, class_rows, peakedness

from .test_data import ALWAYS, NEVER, MakeConfig, images_of

EVERY = [(0, position) for position in range(24)]


def test_moved_maps_are_ones_own_around_the_edges_and_in_another_place(make_config: MakeConfig) -> None:
    own = images_of(make_config(augmentation=NEVER)).__getitems__(EVERY)
    images = images_of(make_config(maps="moved", augmentation=NEVER))
    moved, again = images.__getitems__(EVERY), images.__getitems__(EVERY[::-1])
    assert own.maps is not None
    assert moved.maps is not None
    assert again.maps is not None
    assert torch.equal(moved.maps, again.maps.flip(0))  # by image and seed, whatever else is in the batch
    assert torch.equal(moved.scale, own.scale)
    assert torch.equal(moved.words, own.words)
    rows, columns = own.maps.shape[-2:]
    for mine, theirs in zip(own.maps, moved.maps, strict=True):
        shifts = [
            (down, across)
            for down in range(1, rows)
            for across in range(1, columns)
            if torch.equal(torch.roll(mine, (down, across), (-2, -1)), theirs)
        ]
        assert shifts
        assert all(rows // 4 <= down <= rows - rows // 4 for down, _ in shifts)
    other = images_of(make_config(maps="moved", augmentation=NEVER, seed=1)).__getitems__(EVERY)
    assert not torch.equal(other.maps, moved.maps)


@pytest.mark.parametrize("augmentation", [NEVER, ALWAYS])
def test_true_masks_are_the_share_of_each_cell_that_a_words_objects_cover(
    make_config: MakeConfig, augmentation: object
) -> None:
    images = images_of(make_config(maps="masks", augmentation=augmentation))
    batch, store = images.__getitems__(EVERY), images.store
    assert batch.maps is not None
    assert batch.scale is not None
    assert batch.words is not None
    dataset = read_dataset(store.source, store.source_root, store.spec.dataset.split)
    maps = decode_maps(batch.maps, batch.scale, store.spec.codec.name).numpy()
    words = np.array(store.vocabulary.words)
    checked = 0
    for position, sample in enumerate(dataset.samples):
        named = {dataset.classes[each.label]: each for each in dataset.instances[sample.key]}
        for place, word in enumerate(batch.words[position].tolist()):
            if word < 0 or words[word] not in named:
                assert not maps[position, :, place].any()
                continue
            mask = named[words[word]].mask(sample.height, sample.width).astype(np.float64)
            mask = mask[:, ::-1] if augmentation is ALWAYS else mask
            rows, columns = maps.shape[-2:]
            height, width = mask.shape
            cells = mask.reshape(rows, height // rows, columns, width // columns).sum((1, 3)) / mask.sum()
            for layer in maps[position, :, place]:
                np.testing.assert_allclose(layer, cells, atol=0.01)  # the codec rounds
            checked += 1
    assert checked > 20


def test_masks_of_data_without_any_are_refused(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(maps="masks")
    store = TargetStore.open(config.data.targets)
    monkeypatch.setattr("lfi_pipeline.training.maps.count_masks", lambda instances: 0)
    with pytest.raises(ConfigError, match="needs a data set with masks"):
        TargetImages(store, config.data, [(64, 64)], frozenset({MAPS}))


def test_masks_of_an_image_that_is_gone_are_refused(make_config: MakeConfig) -> None:
    images = images_of(make_config(maps="masks"))
    masks = images.source._masks
    assert isinstance(masks, TrueMasks)
    masks._sizes.pop(images.index.keys[3])
    with pytest.raises(ValueError, match="must hold the image 000000000004 of the cache"):
        images.__getitems__([(0, 3)])


def test_peakedness_is_one_less_the_share_of_the_largest_entropy() -> None:
    maps = torch.tensor([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0, 0, 0, 0]], dtype=torch.float32)
    torch.testing.assert_close(peakedness(maps), torch.tensor([1, 0, 0.5, 0.0]))
    assert peakedness(torch.ones(2, 1)).tolist() == [1, 1]


def test_peaked_words_count_for_more(make_config: MakeConfig) -> None:
    config = make_config(word_weight="peaked", augmentation=NEVER)
    store = TargetStore.open(config.data.targets)
    learner, plain = Learner(config, store, "multi-label"), Learner(make_config(), store, "multi-label")
    batch = TargetImages(store, config.data, [learner.student.size], learner.reads).__getitems__(EVERY)
    cut = MapResampler(batch, store.spec.codec.name)
    peaked, _ = learner.supervise(cut)
    mass, _ = plain.supervise(cut)
    assert peaked is not None
    assert mass is not None
    for weight, kept, target in zip(peaked.weights, mass.weights, peaked.targets, strict=True):
        torch.testing.assert_close(weight, kept * peakedness(target))
    assert not torch.equal(peaked.weights[0], mass.weights[0])


@pytest.mark.parametrize("objective", ["lfi", "lfi+presence"])
def test_stored_codes_teach_as_decoded_maps_do(make_config: MakeConfig, objective: str) -> None:
    """Where the image is seen whole on the grid of the maps; the rounding of the codec's scale is all that differs."""
    student = StudentConfig(image_size=64, patch_size=8, kwargs={"depth": 2, "embed_dim": 16, "num_heads": 2})
    config = make_config(augmentation=NEVER, objective=objective, student_config=student)
    store = TargetStore.open(config.data.targets)
    learner = Learner(config, store, "multi-label").eval()
    batch = TargetImages(store, config.data, [learner.student.size], learner.reads).__getitems__(EVERY[:8])
    assert batch.whole
    losses, dtypes = {}, {}
    for hands in (False, True):
        cut = MapResampler(batch, store.spec.codec.name)
        cut.hands_codes = hands
        torch.manual_seed(0)
        supervision, present = learner.supervise(cut)
        assert supervision is not None
        assert supervision.targets is not None
        assert supervision.weights is not None
        dtypes[hands] = {each.dtype for each in supervision.targets}
        mass = torch.stack([weight.sum() for weight in supervision.weights])
        context = StepContext(batch=batch, share=1.0, mass=mass, present=present, cut=cut)
        losses[hands] = learner(context, supervision, learner.weights(0.0))
    assert dtypes == {False: {torch.float32}, True: {torch.uint8}}
    torch.testing.assert_close(losses[True]["lfi"], losses[False]["lfi"], rtol=2e-3, atol=0)
    assert losses[True]["lfi"] != losses[False]["lfi"]  # another path was taken


def test_codes_are_handed_on_only_where_they_are_the_maps(make_config: MakeConfig) -> None:
    whole = images_of(make_config(augmentation=NEVER)).__getitems__(EVERY)
    cropped = images_of(make_config(augmentation=Augmentation(scale=(0.2, 0.5)))).__getitems__(EVERY)
    mixed = images_of(make_config(augmentation=NEVER, cutmix=1.0)).__getitems__(EVERY)
    assert whole.whole
    assert not cropped.whole
    assert not mixed.whole
    assert whole.maps is not None
    grid = (whole.maps.shape[-2], whole.maps.shape[-1])
    cut = MapResampler(whole, "uint8_sqrt")
    assert cut.codes_on(grid) is None  # on a CPU
    cut.hands_codes = True
    assert cut.codes_on(grid) is not None
    assert cut.codes_on((grid[0] + 1, grid[1])) is None


def test_rows_of_classes_have_one_shape_whatever_the_words_are() -> None:
    class_of_word = torch.tensor([2, -1, 0, 2])  # words 0 and 3 name the same class
    words = torch.tensor([[1, 3, 0, 2], [-1, -1, -1, -1], [2, 1, 0, -1]])
    classes, place, named = class_rows(words, class_of_word, 5)
    assert classes.shape == place.shape == named.shape == (3, 4)
    assert all(len(set(row)) == 4 for row in classes.tolist())
    taught = [
        {(k, m) for k, m, is_named in zip(*row, strict=True) if is_named}
        for row in zip(classes.tolist(), place.tolist(), named.tolist(), strict=True)
    ]
    assert taught == [{(2, 1), (0, 3)}, set(), {(0, 0), (2, 2)}]


def test_there_are_no_more_rows_than_classes() -> None:
    words = torch.tensor([[0, 1, 2, 3]])
    classes, place, named = class_rows(words, torch.tensor([1, -1, 0, -1]), 2)
    assert classes.tolist() == [[1, 0]]
    assert place.tolist() == [[0, 2]]
    assert named.all()

"""Mixup and cutmix: images, labels and maps say the same about what is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data.config import MixConfig
from lfi_pipeline.data.mixing import Mix, draw_mix, mix_images, mix_labels, mix_maps, mixed_loss

LIGHT = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))
BOTH, MIXUP, CUTMIX = MixConfig(mixup=0.8, cutmix=1.0), MixConfig(mixup=0.8), MixConfig(cutmix=1.0)
CONFIGS = st.sampled_from([BOTH, MIXUP, CUTMIX, replace(BOTH, probability=0.5)])
IMAGES = 5


def _draw(config: MixConfig, seed: int, images: int = IMAGES) -> Mix:
    return draw_mix(config, [np.random.default_rng([seed, pair]) for pair in range(images // 2)], images)


def _pair(share: float, box: tuple[float, float, float, float] = (0, 0, 0, 0)) -> Mix:
    return Mix(torch.full((2,), share), torch.tensor([box] * 2, dtype=torch.float32), torch.tensor([1, 0]))


def _maps(seed: int, grid: tuple[int, int], images: int = IMAGES, slots: int = 3) -> tuple[Tensor, Tensor]:
    """Mass [B, 2, M, rows, columns] whose rows sum to 1 or less, distinct words with gaps."""
    rng = np.random.default_rng(seed)
    mass = torch.from_numpy(rng.random((images, 2, slots, *grid))).float()
    mass = mass / mass.sum((-1, -2), keepdim=True) * torch.from_numpy(rng.random((images, 2, slots, 1, 1))).float()
    words = torch.stack([torch.from_numpy(rng.permutation(6)[:slots]) for _ in range(images)])
    words[torch.from_numpy(rng.random(words.shape) < 0.2)] = -1
    return mass * (words >= 0)[:, None, :, None, None], words


def _images(seed: int, size: tuple[int, int], images: int = IMAGES) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (images, 3, *size), dtype=np.uint8))


def _mass_of(mass: Tensor, words: Tensor) -> Tensor:
    """Mass [B, L, 6, rows, columns] of each of the six words, whatever its row."""
    return torch.einsum("bmv,blmrc->blvrc", (words[..., None] == torch.arange(6)).float(), mass)


@LIGHT
@given(seed=SEEDS, config=CONFIGS, size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_the_share_is_what_pixels_show(seed: int, config: MixConfig, size: tuple[int, int]) -> None:
    """Own images white, partners black: the mean grey is the share, for boxes that cut through pixels too."""
    images = torch.zeros(IMAGES, 3, *size, dtype=torch.uint8)
    images[0::2] = 255
    mix = _draw(config, seed)
    shown = mix_images(images, mix).float().mean((1, 2, 3)) / 255
    white = mix_labels((torch.arange(IMAGES) % 2 == 0).float()[:, None], mix)[:, 0]
    torch.testing.assert_close(shown, white, atol=0.5 / 255 + 1e-6, rtol=0)


@LIGHT
@given(seed=SEEDS, config=CONFIGS, grid=GRIDS)
def test_every_word_keeps_the_mass_that_is_shown(seed: int, config: MixConfig, grid: tuple[int, int]) -> None:
    """In each cell: own mass times the own share of a cell-sized pixel, plus the partner's times the rest."""
    mass, words = _maps(seed, grid)
    mix = _draw(config, seed)
    mixed, mixed_words = mix_maps(mass, words, mix)
    assert mixed.shape == (IMAGES, 2, 6, *grid)
    own_is_white = torch.zeros(IMAGES, 3, *grid, dtype=torch.uint8)
    own_shown = torch.empty(IMAGES, *grid)
    for image in range(IMAGES):
        own_is_white.zero_()
        own_is_white[image] = 255
        own_shown[image] = mix_images(own_is_white, mix)[image, 0].float() / 255
    alone = mix.partner == torch.arange(IMAGES)
    assert bool((own_shown[alone] == 1).all())
    before = _mass_of(mass, words)
    expected = before * own_shown[:, None, None] + before[mix.partner] * (1 - own_shown)[:, None, None]
    torch.testing.assert_close(_mass_of(mixed, mixed_words), expected, atol=0.5 / 255 + 1e-6, rtol=0)
    assert not mixed.masked_select((mixed_words < 0)[:, None, :, None, None]).any()


@LIGHT
@given(seed=SEEDS, grid=GRIDS)
def test_mixup_conserves_mass(seed: int, grid: tuple[int, int]) -> None:
    mass, words = _maps(seed, grid)
    mix = _draw(MIXUP, seed)
    kept = mass.sum((-1, -2, -3))
    share = mix.share[:, None]
    mixed, _ = mix_maps(mass, words, mix)
    torch.testing.assert_close(mixed.sum((-1, -2, -3)), share * kept + (1 - share) * kept[mix.partner])


@LIGHT
@given(seed=SEEDS, grid=GRIDS)
def test_a_pair_of_cutmix_shares_its_mass_out(seed: int, grid: tuple[int, int]) -> None:
    """What one picture loses outside or inside the box, the other one shows: their sum is that of both images."""
    mass, words = _maps(seed, grid, images=2)
    mix = _draw(CUTMIX, seed, images=2)
    mixed, mixed_words = mix_maps(mass, words, mix)
    before, after = _mass_of(mass, words).sum(0), _mass_of(mixed, mixed_words).sum(0)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    uniform = torch.ones(2, 1, 1, *grid) / (grid[0] * grid[1])
    kept = mix_maps(uniform, torch.tensor([[0], [1]]), mix)[0].sum((-1, -2))[:, 0]
    torch.testing.assert_close(kept[:, 0], mix.share, atol=1e-5, rtol=0)
    torch.testing.assert_close(kept[:, 1], 1 - mix.share, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [1.0, 0.0])
@pytest.mark.parametrize("pasted", [False, True])
def test_nothing_or_all_of_the_partner(share: float, pasted: bool) -> None:
    """Share 1 is the identity; share 0, by mixup or by a box over everything, is the partner."""
    mass, words = _maps(3, (4, 7), images=2)
    images, labels = _images(3, (9, 13), images=2), torch.rand(2, 5)
    mix = _pair(share, (0, 0, 1, 1) if pasted and not share else (0.4, 0.2, 0.4, 0.9) if pasted else (0, 0, 0, 0))
    shown = slice(None) if share else [1, 0]
    half = slice(0, 3) if share else slice(3, 6)
    mixed, mixed_words = mix_maps(mass, words, mix)
    assert torch.equal(mix_images(images, mix), images[shown])
    assert torch.equal(mix_labels(labels, mix), labels[shown])
    torch.testing.assert_close(mixed[:, :, half], mass[shown])
    assert torch.equal(mixed_words[:, half], words[shown])
    assert mixed.sum().item() == pytest.approx(mass.sum().item())
    assert sorted(mixed_words.flatten().tolist()) == sorted([-1] * 6 + words.flatten().tolist())


@LIGHT
@given(seed=SEEDS, config=CONFIGS, grid=GRIDS)
def test_mixing_commutes_with_a_flip_of_everything(seed: int, config: MixConfig, grid: tuple[int, int]) -> None:
    mass, words = _maps(seed, grid)
    images = _images(seed, grid)
    mix = _draw(config, seed)
    left, top, right, bottom = mix.box.unbind(1)
    pasted = (right > left)[:, None]
    mirrored = replace(mix, box=torch.where(pasted, torch.stack([1 - right, top, 1 - left, bottom], 1), mix.box))
    one, its_words = mix_maps(mass.flip(-1), words, mirrored)
    other, other_words = mix_maps(mass, words, mix)
    torch.testing.assert_close(one, other.flip(-1), atol=1e-5, rtol=1e-5)
    assert torch.equal(its_words, other_words)
    difference = mix_images(images.flip(-1), mirrored).int() - mix_images(images, mix).flip(-1).int()
    assert difference.abs().max() <= 1  # a tie may round to the other side


@LIGHT
@given(seed=SEEDS, place=st.tuples(st.integers(0, 7), st.integers(0, 5)))
def test_mass_is_exactly_where_the_object_remains(seed: int, place: tuple[int, int]) -> None:
    """A white square and a word that points at it, in a black image with a black partner."""
    row, column = place
    images = torch.zeros(2, 3, 8 * 16, 6 * 16, dtype=torch.uint8)
    images[0, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
    mass = torch.zeros(2, 1, 1, 8, 6)
    mass[0, 0, 0, row, column] = 0.7
    mix = _draw(CUTMIX, seed, images=2)
    mixed, words = mix_maps(mass, torch.tensor([[4], [2]]), mix)
    assert words.tolist() == [[4, 2], [2, 4]]
    white = mix_images(images, mix)[:, 0].float().unflatten(1, (8, 16)).unflatten(3, (6, 16)).mean((2, 4)) / 255
    torch.testing.assert_close(mixed[0, 0, 0], 0.7 * white[0], atol=2e-3, rtol=0)  # in the own picture
    torch.testing.assert_close(mixed[1, 0, 1], 0.7 * white[1], atol=2e-3, rtol=0)  # pasted into the partner's
    assert not mixed[0, 0, 1].any()
    assert not mixed[1, 0, 0].any()


def test_a_box_on_cell_borders_by_hand() -> None:
    """Cells 2 x 2, box over the right half: own words live on the left, the partner's on the right."""
    mass = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]], [[[0.4, 0.1], [0.1, 0.2]]]])[:, None]
    mixed, words = mix_maps(mass, torch.tensor([[0], [1]]), _pair(0.5, (0.5, 0, 1, 1)))
    assert words.tolist() == [[0, 1], [1, 0]]
    torch.testing.assert_close(mixed[0, 0], torch.tensor([[[0.1, 0], [0.3, 0]], [[0, 0.1], [0, 0.2]]]))
    torch.testing.assert_close(mixed[1, 0], torch.tensor([[[0.4, 0], [0.1, 0]], [[0, 0.2], [0, 0.4]]]))


def test_a_word_of_both_images_is_one_row() -> None:
    mass = torch.tensor([[[[0.5]], [[0.3]], [[0.0]]], [[[0.2]], [[0.0]], [[0.8]]]])[:, None]
    words = torch.tensor([[5, 3, -1], [4, -1, 5]])
    mixed, mixed_words = mix_maps(mass, words, _pair(0.25))
    assert mixed_words.tolist() == [[5, 3, -1, 4, -1, -1], [4, -1, 5, -1, 3, -1]]
    expected = [[0.125 + 0.6, 0.075, 0, 0.15, 0, 0], [0.05, 0, 0.2 + 0.375, 0, 0.225, 0]]
    torch.testing.assert_close(mixed[:, 0, :, 0, 0], torch.tensor(expected))


def test_a_word_with_several_own_rows_takes_the_partners_mass_once() -> None:
    mass = torch.full((2, 1, 2, 1, 1), 0.5)
    mixed, words = mix_maps(mass, torch.tensor([[5, 5], [5, 1]]), _pair(0.5))
    assert words.tolist() == [[5, 5, -1, 1], [5, 1, -1, -1]]
    assert mixed[0, 0, :, 0, 0].tolist() == [0.5, 0.25, 0, 0.25]
    assert mixed[1, 0, :, 0, 0].tolist() == [0.75, 0.25, 0, 0]


def test_rows_of_padding_lose_their_mass() -> None:
    """A word of direction in a mirrored image is padding, its stored map is still there."""
    mixed, words = mix_maps(torch.full((2, 1, 1, 1, 1), 0.5), torch.tensor([[-1], [2]]), _pair(0.5))
    assert words.tolist() == [[-1, 2], [2, -1]]
    assert mixed[:, 0, :, 0, 0].tolist() == [[0, 0.25], [0.25, 0]]


@LIGHT
@given(seed=SEEDS, config=CONFIGS, images=st.integers(0, 9))
def test_pairs_are_drawn_on_their_own(seed: int, config: MixConfig, images: int) -> None:
    """A pair's mix depends on its generator alone, so a batch may be split between pairs; both share one draw."""
    mix = _draw(config, seed, images)
    pairs = images // 2
    assert mix.partner.tolist() == [i ^ 1 if i < 2 * pairs else i for i in range(images)]
    for pair in range(pairs):
        alone = draw_mix(config, [np.random.default_rng([seed, pair])])
        both = slice(2 * pair, 2 * pair + 2)
        assert torch.equal(alone.share, mix.share[both])
        assert torch.equal(alone.box, mix.box[both])
        assert alone.share[0] == alone.share[1]
        assert torch.equal(alone.box[0], alone.box[1])
    assert bool((mix.share[2 * pairs :] == 1).all())
    assert mix.share.dtype == mix.box.dtype == torch.float32
    assert 0 <= float(mix.box.min() if images else 0) <= float(mix.box.max() if images else 0) <= 1


def test_draws_follow_their_distributions() -> None:
    def drawn(config: MixConfig) -> Mix:
        return draw_mix(config, [np.random.default_rng([9, pair]) for pair in range(1500)])

    mixup, cutmix, both, half = (
        drawn(c) for c in (replace(MIXUP, mixup=2.0), CUTMIX, BOTH, replace(BOTH, probability=0.3))
    )
    assert not mixup.box.any()
    assert mixup.share.mean() == pytest.approx(0.5, abs=0.02)
    assert mixup.share.std() == pytest.approx(0.05**0.5, abs=0.02)  # Beta(2, 2)
    area = (cutmix.box[:, 2] - cutmix.box[:, 0]) * (cutmix.box[:, 3] - cutmix.box[:, 1])
    torch.testing.assert_close(cutmix.share, 1 - area)
    assert area.mean() == pytest.approx(0.3208, abs=0.02)  # 1/2 before clipping: E[(s - s^2/4)^2], s^2 uniform
    assert (both.box.any(1)).float().mean() == pytest.approx(0.5, abs=0.04)
    assert (both.share < 1).float().mean() > 0.99
    assert (half.share < 1).float().mean() == pytest.approx(0.3, abs=0.04)


def test_off_mixes_nothing() -> None:
    for config in (MixConfig(), MixConfig(mixup=1, probability=0)):
        assert not config.active
        mix = _draw(config, 0)
        assert bool((mix.share == 1).all())
        images = _images(0, (3, 4))
        assert torch.equal(mix_images(images, mix), images)
    assert MIXUP.active
    assert CUTMIX.active


def test_losses_are_weighted_by_what_is_shown() -> None:
    mix = Mix(torch.tensor([0.25, 0.75, 1.0]), torch.zeros(3, 4), torch.tensor([1, 0, 2]))
    target = torch.tensor([[1.0, 2.0], [10.0, 20.0], [5.0, 5.0]])
    loss = mixed_loss(lambda t: t.sum(1), target, mix)
    assert loss.tolist() == [0.25 * 3 + 0.75 * 30, 0.75 * 30 + 0.25 * 3, 10]


def test_a_mix_moves_between_devices() -> None:
    moved = _pair(0.5).mapped(lambda tensor: tensor.to("meta"))
    assert {moved.share.device.type, moved.box.device.type, moved.partner.device.type} == {"meta"}


@pytest.mark.parametrize(
    "wrong", [{"mixup": -0.1}, {"cutmix": -1}, {"mixup": float("nan")}, {"cutmix": float("inf")}, {"probability": 1.5}]
)
def test_impossible_distributions_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^{next(iter(wrong))} must be (0 or more and|a|from 0 to 1)"):
        MixConfig(**wrong)


def test_generators_and_pairs_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"6 images have 3 pairs, got 2 generators"):
        draw_mix(MIXUP, [np.random.default_rng(0)] * 2, 6)

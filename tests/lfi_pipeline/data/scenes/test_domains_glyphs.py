from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lfi_pipeline.data.scenes import NAMES
from lfi_pipeline.data.scenes import domains as glyphs
from lfi_pipeline.data.scenes.domains import SPRITE_SIZE, sprite


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    """All sprites, float [64, 16, 16, 4]."""
    resized = [sprite(name).resize((16, 16), Image.Resampling.BOX) for name in NAMES]
    return np.stack([np.asarray(each, dtype=np.float32) for each in resized])


def test_every_category_has_ink_in_the_installed_font() -> None:
    for name in NAMES:
        picture = sprite(name)
        alpha = np.asarray(picture.getchannel("A"))
        assert picture.mode == "RGBA"
        assert max(picture.size) <= 1.3 * SPRITE_SIZE, name
        assert (alpha > 127).mean() > 0.05, name
        for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
            assert edge.any(), f"{name} is not cropped to its ink"


def test_sprites_are_in_colour_and_all_differ(small: np.ndarray) -> None:
    coloured = [np.ptp(each[..., :3][each[..., 3] > 127], axis=-1).max() > 20 for each in small]
    assert np.mean(coloured) > 0.8  # a few, as the cow, are grey
    difference = np.abs(small[:, None] - small[None]).mean((-1, -2, -3))
    assert difference[~np.eye(len(NAMES), dtype=bool)].min() > 2


def test_no_category_falls_back_to_the_sign_for_a_missing_glyph(
    small: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(glyphs.GLYPHS, "nobody", "\U000e1234")
    try:
        missing = sprite.__wrapped__("nobody").resize((16, 16), Image.Resampling.BOX)
    except RuntimeError:
        return  # this font draws nothing for a missing glyph, which the test of ink would see
    difference = np.abs(small - np.asarray(missing, dtype=np.float32)).mean((-1, -2, -3))
    assert difference.min() > 2


def test_a_glyph_without_ink_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(glyphs.GLYPHS, "space", " ")
    with pytest.raises(RuntimeError, match="no glyph for category 'space'"):
        sprite.__wrapped__("space")

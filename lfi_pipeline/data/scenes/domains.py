"""The visual domains that `scenes` are drawn in: which shapes, how they are coloured, what is behind them."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data.scenes.glyphs import (
    EMBLEMS,
    ICONS,
    NAMES,
    bent,
    font_sprite,
    icon,
    sprite,
    with_hole,
    with_lines,
)

Array = npt.NDArray[np.floating]
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_BAYER = (np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], dtype=np.float32) + 0.5) / 16


@dataclass(frozen=True, slots=True)
class Domain:
    """Appearance of one domain.

    Attributes:
        background: (size, rng) -> RGB [size, size, 3].
        sprite: (RGB [h, w, 3], rng) -> RGB [h, w, 3] of one object.
        finish: (RGB [size, size, 3], rng) -> RGB [size, size, 3] of the whole picture.
        shape: (category, rng) -> RGBA picture of it, cropped to its ink.
        names: categories that the domain can draw.
        fills: whether a mask covers what lines enclose: an icon of a cat's outline is a cat, not its outline.
    """

    background: Callable[[int, np.random.Generator], Array]
    sprite: Callable[[Array, np.random.Generator], Array]
    finish: Callable[[Array, np.random.Generator], Array]
    shape: Callable[[str, np.random.Generator], Image.Image] = lambda name, rng: sprite(name)
    names: tuple[str, ...] = NAMES
    fills: bool = False


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb, dtype=np.float32)


def _clouds(size: int, cells: int, rng: np.random.Generator) -> Array:
    """Smooth noise [size, size, 1] in [0, 1] with about `cells` bumps a side."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8), mode="L")
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)[..., None] / 255


def _pattern(size: int, rng: np.random.Generator) -> Array:
    """Stripes, checks, dots or nothing, [size, size, 1] in [0, 1]."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle, count = rng.uniform(0, np.pi), rng.uniform(3, 9)
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    wave_a, wave_b = np.sin(2 * np.pi * count * along), np.sin(2 * np.pi * count * across)
    choice = rng.integers(4)
    pattern = (wave_a > 0, (wave_a * wave_b) > 0, (wave_a + wave_b) > 1.2, np.zeros_like(wave_a))[choice]
    mask: Array = pattern.astype(np.float32)[..., None]
    return mask


def _grey(rgb: Array) -> Array:
    return np.repeat((rgb @ _LUMA)[..., None], 3, axis=-1)


def _plain(rgb: Array, rng: np.random.Generator) -> Array:
    return rgb


def _colour_background(size: int, rng: np.random.Generator) -> Array:
    first, second = _colour(rng, (0.1, 0.5), (0.6, 1.0)), _colour(rng, (0.1, 0.5), (0.6, 1.0))
    clouds = _clouds(size, int(rng.integers(2, 6)), rng)
    ground: Array = first * clouds + second * (1 - clouds)
    return ground * (1 - 0.15 * _pattern(size, rng))


def _paper_background(size: int, rng: np.random.Generator) -> Array:
    paper = np.array([1.0, 0.99, 0.96], dtype=np.float32) * np.float32(rng.uniform(0.88, 1.0))
    sheet: Array = paper - 0.06 * _clouds(size, 8, rng) - 0.07 * _pattern(size, rng)
    return sheet


def _line_art(rgb: Array, rng: np.random.Generator) -> Array:
    ink = np.clip((0.42 - rgb @ _LUMA) / 0.25, 0, 1)[..., None]
    pen = _colour(rng, (0.0, 1.0), (0.0, 0.35))
    return (1 - ink) * np.float32(0.97) + ink * pen


def _grey_background(size: int, rng: np.random.Generator) -> Array:
    tone = rng.uniform(0.35, 0.85) + 0.3 * (_clouds(size, int(rng.integers(2, 8)), rng) - 0.5)
    return np.repeat((tone - 0.12 * _pattern(size, rng)).astype(np.float32), 3, axis=-1)


def _grey_sprite(rgb: Array, rng: np.random.Generator) -> Array:
    return _grey(rgb) ** np.float32(rng.uniform(0.7, 1.5))


def _halftone(rgb: Array, rng: np.random.Generator) -> Array:
    """Ordered dither to a few grey levels, as newsprint."""
    levels = int(rng.integers(6, 13))
    tone = np.clip(rgb[..., :1], 0, 1)
    size = tone.shape[0]
    threshold = np.tile(_BAYER, (size // 4 + 1, size // 4 + 1))[:size, :size, None]
    return np.repeat(np.floor(tone * levels + threshold) / levels, 3, axis=-1)


def _photo_background(size: int, rng: np.random.Generator) -> Array:
    first, second, third = (_colour(rng, (0.1, 0.6), (0.3, 0.95)) for _ in range(3))
    broad, fine = _clouds(size, int(rng.integers(2, 4)), rng), _clouds(size, int(rng.integers(8, 20)), rng)
    ground: Array = (first * broad + second * (1 - broad)) * 0.75 + 0.25 * third * fine
    return ground


def _photo_sprite(rgb: Array, rng: np.random.Generator) -> Array:
    """Shift the colours, soften the drawn outline and light the object from one side."""
    mix = np.eye(3, dtype=np.float32) + rng.normal(0, 0.12, (3, 3)).astype(np.float32)
    softened = 0.16 + 0.84 * (rgb @ mix)
    height, width = rgb.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    side = np.cos(angle) * (x / max(width, 2) - 0.5) + np.sin(angle) * (y / max(height, 2) - 0.5)
    lit: Array = softened * (1 + rng.uniform(0.2, 0.7) * side[..., None])
    return lit


def _camera(rgb: Array, rng: np.random.Generator) -> Array:
    """Exposure, vignette and sensor noise."""
    size = rgb.shape[0]
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    vignette = 1 - rng.uniform(0, 0.35) * (x**2 + y**2)[..., None] / 2
    exposed = (rgb - 0.5) * rng.uniform(0.7, 1.15) + 0.5 + rng.uniform(-0.12, 0.12)
    noise = rng.normal(0, rng.uniform(0.01, 0.05), rgb.shape)
    noisy: Array = exposed * vignette + noise
    return noisy


def _natural(size: int, rng: np.random.Generator) -> Array:
    """A background with the spectrum of photographs: amplitude falls as 1 / frequency, mostly in brightness.

    D. J. Field, "Relations between the statistics of natural images and the response properties of cortical cells", JOSA A
    1987: the amplitude of photographs falls about as 1 / f.
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    fall = np.maximum(frequency, 1 / size) ** -rng.uniform(0.9, 1.5)
    noise = rng.normal(size=(4, *fall.shape)) + 1j * rng.normal(size=(4, *fall.shape))
    waves = np.fft.irfft2(noise * fall, s=(size, size))
    waves /= waves.std(axis=(1, 2), keepdims=True) + 1e-6
    brightness, tints = waves[0][..., None], np.moveaxis(waves[1:], 0, -1)
    contrast = rng.uniform(0.06, 0.2)
    ground: Array = (
        _colour(rng, (0.0, 0.5), (0.3, 0.95)) + contrast * brightness + rng.uniform(0.1, 0.4) * contrast * tints
    )
    return np.clip(ground, 0, 1).astype(np.float32)


def _any_background(size: int, rng: np.random.Generator) -> Array:
    """One of the ways to draw a background, or a collage of two."""
    ways = (_colour_background, _paper_background, _grey_background, _photo_background, _natural)
    ground = ways[rng.integers(len(ways))](size, rng)
    if rng.random() < 0.3:
        other = ways[rng.integers(len(ways))](size, rng)
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
        angle = rng.uniform(0, 2 * np.pi)
        side = (np.cos(angle) * x + np.sin(angle) * y > rng.uniform(-0.2, 0.2))[..., None]
        ground = np.where(side, ground, other)
    return ground


def _varied_shape(name: str, rng: np.random.Generator) -> Image.Image:
    """An OpenMoji drawing that is bent, with thicker or thinner lines, and maybe a part of it hidden."""
    picture = with_lines(sprite(name), rng) if rng.random() < 0.6 else sprite(name)
    picture = bent(picture, rng)
    return with_hole(picture, rng) if rng.random() < 0.3 else picture


def _varied_sprite(rgb: Array, rng: np.random.Generator) -> Array:
    """Other colours, with a texture, in one of several techniques."""
    technique = rng.integers(5)
    if technique == 0:
        return _line_art(rgb, rng)
    if technique == 1:
        return _grey_sprite(rgb, rng)
    mix = np.eye(3, dtype=np.float32) + rng.normal(0, 0.35, (3, 3)).astype(np.float32)
    if technique == 2:  # hues change places
        mix = mix[:, rng.permutation(3)]
    coloured = np.clip((rgb @ mix) * rng.uniform(0.7, 1.2) + rng.uniform(-0.1, 0.2), 0, 1)
    if rng.random() < 0.4:
        side = max(coloured.shape[:2])
        texture = (_pattern(side, rng) if rng.random() < 0.5 else _clouds(side, 12, rng))[: len(rgb), : rgb.shape[1]]
        coloured = coloured * (1 - rng.uniform(0.2, 0.5) * texture)
    return coloured.astype(np.float32)


def _sensor(rgb: Array, rng: np.random.Generator) -> Array:
    return rgb + rng.normal(0, 0.02, rgb.shape)


def _varied_finish(rgb: Array, rng: np.random.Generator) -> Array:
    return (_plain, _camera, _halftone, _sensor)[rng.choice(4, p=(0.4, 0.3, 0.1, 0.2))](rgb, rng)


@cache
def _silhouette(name: str) -> Image.Image:
    """Return a drawing of OpenMoji in one colour, its lines cut out, as an icon would show it."""
    picture = sprite(name)
    light = np.asarray(picture.convert("RGB"), dtype=np.float32) @ (_LUMA / 255)
    alpha = np.asarray(picture.getchannel("A"), dtype=np.float32) * np.clip((light - 0.1) / 0.2, 0, 1)
    black = np.zeros((*alpha.shape, 4), dtype=np.uint8)
    black[..., 3] = alpha.astype(np.uint8)
    return Image.fromarray(black)


def _icon_shape(name: str, rng: np.random.Generator) -> Image.Image:
    drawings = ICONS.get(name, ())
    chosen = int(rng.integers(max(len(drawings), 1)))
    picture = icon(drawings[chosen]) if drawings else _silhouette(name)
    return bent(picture, rng, 0.05)


def _emblem_shape(name: str, rng: np.random.Generator) -> Image.Image:
    return icon(EMBLEMS[name][rng.integers(len(EMBLEMS[name]))])


def _filled(rgb: Array, rng: np.random.Generator) -> Array:
    """One dark colour, or two in a pattern or a gradient, whatever the colours were."""
    side = max(rgb.shape[:2])
    first, second = _colour(rng, (0.2, 1.0), (0.1, 0.65)), _colour(rng, (0.2, 1.0), (0.1, 0.65))
    way = rng.integers(3)
    share = (np.zeros((side, side, 1)), _pattern(side, rng), _clouds(side, 3, rng))[way]
    filled: Array = (first * (1 - share) + second * share)[: len(rgb), : rgb.shape[1]].astype(np.float32)
    return filled


def _light_background(size: int, rng: np.random.Generator) -> Array:
    """Any background, brightened until a dark shape stands out."""
    lightest = rng.uniform(0.45, 0.7)
    ground: Array = lightest + (1 - lightest) * _any_background(size, rng)
    return ground


DOMAINS: dict[str, Domain] = {
    "colour": Domain(_colour_background, _plain, _plain),
    "outline": Domain(_paper_background, _line_art, _plain),
    "grey": Domain(_grey_background, _grey_sprite, _halftone),
    "photo": Domain(_photo_background, _photo_sprite, _camera),
    "varied": Domain(_any_background, _varied_sprite, _varied_finish, _varied_shape),
    "icon": Domain(_light_background, _filled, _varied_finish, _icon_shape, fills=True),
    "emblem": Domain(_light_background, _filled, _varied_finish, _emblem_shape, tuple(EMBLEMS), fills=True),
}


@cache
def font_domain(font_file: Path) -> Domain:
    """Return the domain of an emoji font of the user's: its drawings as they are, before photograph-like backgrounds.

    Raises:
        ConfigError: the file is no font that can be read, or draws none of the categories.
    """
    names = tuple(name for name in NAMES if font_sprite(name, font_file) is not None)
    if not names:
        raise ConfigError(
            f"font must draw some of the categories of scenes as emojis, found none in {font_file}.", argument="font"
        )

    def shape(name: str, rng: np.random.Generator) -> Image.Image:
        picture = font_sprite(name, font_file)
        assert picture is not None  # one of `names`
        return picture

    return Domain(_any_background, _plain, _varied_finish, shape, names)


_HUES = np.array([(0.25, 0.45, 0.8), (0.3, 0.65, 0.3), (0.85, 0.6, 0.3), (0.6, 0.35, 0.6)], dtype=np.float32)
FAMILIES = len(_HUES)
"""How many kinds of background there are that a category can be tied to."""


def family_background(family: int, size: int, rng: np.random.Generator) -> Array:
    """Return a background of a family, RGB [size, size, 3]: a hue with a pattern, both of which give it away."""
    clouds = _clouds(size, int(rng.integers(2, 6)), rng)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    count, phase = rng.uniform(3, 7), rng.uniform(0, 2 * np.pi)
    across, down, slanted = (np.sin(2 * np.pi * count * along + phase) for along in (x, y, x + y))
    pattern = (down > 0, across * down > 0, slanted > 0, across + down > 1)[family]
    ground: Array = _HUES[family] * np.float32(rng.uniform(0.8, 1.15)) * (0.75 + 0.35 * clouds)
    shaded: Array = ground * (1 - 0.2 * pattern[..., None])
    return np.clip(shaded, 0, 1)


PLAIN = Domain(_colour_background, _plain, _sensor)
"""How objects before such a background are drawn."""

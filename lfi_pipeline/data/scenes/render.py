"""Render one scene from (seed, split, index): image, objects with exact visible masks, captions."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from lfi_pipeline.data.scenes.categories import NAMES
from lfi_pipeline.data.scenes.domains import DOMAINS, Domain
from lfi_pipeline.data.scenes.glyphs import sprite
from lfi_pipeline.data.scenes.grammar import Placed, caption

CAPTIONS_PER_IMAGE = 2
_PLACES_TRIED = 40
_OBJECT_COUNTS = np.array([0.2, 0.3, 0.3, 0.2])  # 1 to 4 objects
_LEAST_VISIBLE = 0.75  # an object less visible than this share of its own mask is placed anew


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: index into `NAMES` and its visible mask, boolean [size, size]."""

    label: int
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, uint8 RGB [size, size, 3], and what is in it."""

    image: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    captions: tuple[str, ...]


def render_scene(*, seed: int, split: str, index: int, size: int, domain: str, object_scale: float = 1.0) -> Scene:
    """Render scene `index` of `split`; the same arguments always give the same scene.

    At `object_scale` 1 a lone object is 0.45 to 0.72 of the picture's side, one of several 0.38 to 0.54.
    """
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    style = DOMAINS[domain]
    count = int(rng.choice(4, p=_OBJECT_COUNTS)) + 1
    labels = rng.choice(len(NAMES), size=count, replace=False)
    canvas = style.background(size, rng).astype(np.float32)
    owner = np.full((size, size), -1, dtype=np.int64)  # which object is on top at each pixel
    areas: list[int] = []
    placed: list[Placed] = []
    for position, label in enumerate(labels):
        rgba, top, left = _place(_posed(NAMES[label], size * object_scale, count, rng), owner, areas, rng)
        alpha = np.asarray(rgba.getchannel("A"), dtype=np.float32) / 255
        height, width = alpha.shape
        window = (slice(top, top + height), slice(left, left + width))
        colours = style.sprite(np.asarray(rgba.convert("RGB"), dtype=np.float32) / 255, rng)
        canvas[window] = canvas[window] * (1 - alpha[..., None]) + colours * alpha[..., None]
        owner[window][alpha > 0.5] = position
        areas.append(int((alpha > 0.5).sum()))
        placed.append(Placed(NAMES[label], (left + width / 2) / size, (top + height / 2) / size))
    finished = _to_uint8(canvas, style, rng)
    objects = tuple(SceneObject(int(label), owner == i) for i, label in enumerate(labels))
    captions = tuple(caption(placed, rng) for _ in range(CAPTIONS_PER_IMAGE))
    return Scene(finished, objects, captions)


def _posed(name: str, size: float, count: int, rng: np.random.Generator) -> Image.Image:
    """Scale, turn and maybe mirror a sprite; fewer objects are drawn larger."""
    picture = sprite(name)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    low, high = (0.45, 0.72) if count <= 2 else (0.38, 0.54)
    scale = rng.uniform(low, high) * size / max(picture.size)
    width, height = (max(2, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _place(
    rgba: Image.Image, owner: npt.NDArray[np.int64], areas: list[int], rng: np.random.Generator
) -> tuple[Image.Image, int, int]:
    """Return the sprite, drawn smaller where the picture is crowded, and the top and left at which it hides least."""
    alpha = np.asarray(rgba.getchannel("A"), dtype=np.float32) / 255
    size, (height, width) = owner.shape[0], alpha.shape
    best, best_visible = (0, 0), -1.0
    for _ in range(_PLACES_TRIED):
        top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
        below = owner[top : top + height, left : left + width]
        hidden = np.bincount(below[(alpha > 0.5) & (below >= 0)], minlength=len(areas))
        remaining = [((owner == i).sum() - hidden[i]) / max(area, 1) for i, area in enumerate(areas)]
        visible = min(remaining, default=1.0)
        if visible > best_visible:
            best, best_visible = (top, left), float(visible)
        if best_visible >= 0.95:
            break
    if best_visible < _LEAST_VISIBLE and min(width, height) > 4:
        smaller = rgba.resize((width * 3 // 4, height * 3 // 4), Image.Resampling.BOX)
        return _place(smaller, owner, areas, rng)
    return rgba, *best


def _to_uint8(canvas: npt.NDArray[np.float32], style: Domain, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    finished = style.finish(np.clip(canvas, 0, 1), rng)
    return (np.clip(finished, 0, 1) * 255 + 0.5).astype(np.uint8)

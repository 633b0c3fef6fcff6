"""Augmentation: geometry that images and maps go through together, and changes of colour that move no pixel.

A map covers normalised image coordinates [0, 1]^2, so whatever window of the image a student sees can be cut out of it.
Order of operations: mirror the whole image, then cut the window, so that a stored map of the mirrored image (view
`hflip`) is cut exactly as the map of the image itself.

RandAugment (Cubuk et al., arXiv 1909.13719) without its five geometric operations, so that interaction maps stay true
of the changed image. Strengths are those of the paper's code, on timm's scale of magnitudes from 0 to 10.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from lfi_pipeline.data.config import TOP, Augmentation, Photometric

_MIRROR = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
_PATTERN = re.compile(rf"\b({'|'.join(_MIRROR)})\b", re.IGNORECASE)
DIRECTION_WORDS = frozenset(_MIRROR)


def mirrored_caption(caption: str) -> str:
    """Swap words of direction, so that the caption stays true of the mirrored image."""

    def swap(match: re.Match[str]) -> str:
        other = _MIRROR[match.group().lower()]
        return other.capitalize() if match.group()[0].isupper() else other

    return _PATTERN.sub(swap, caption)


@dataclass(frozen=True, slots=True)
class Geometry:
    """One draw: mirror first, then keep the window (left, top, right, bottom) in fractions of the image."""

    flip: bool
    window: tuple[float, float, float, float]


WHOLE = Geometry(flip=False, window=(0.0, 0.0, 1.0, 1.0))


def draw_geometry(config: Augmentation, rng: np.random.Generator) -> Geometry:
    """Draw one geometry; the same generator state gives the same geometry."""
    flip = bool(rng.random() < config.hflip)
    area = rng.uniform(config.scale[0], config.scale[1])
    ratio = math.exp(rng.uniform(math.log(config.ratio[0]), math.log(config.ratio[1])))
    width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
    if width > 1:  # a side that would stick out becomes the image's; the other keeps the area
        width, height = 1.0, area
    elif height > 1:
        width, height = area, 1.0
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return Geometry(flip, (left, top, left + width, top + height))


def view_image(
    image: Image.Image,
    geometry: Geometry,
    size: tuple[int, int],
    interpolation: str = "bicubic",
    changes: Sequence[Change] = (),
) -> npt.NDArray[np.uint8]:
    """Return what a model sees, uint8 [3, height, width] of `size` (height, width), resized by Pillow's filter.

    Photometric `changes` are made last, to the pixels that are seen.
    """
    if geometry.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top, right, bottom = geometry.window
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    resized = image.resize((size[1], size[0]), Image.Resampling[interpolation.upper()], box=box)
    return np.ascontiguousarray(np.asarray(apply_changes(resized, changes)).transpose(2, 0, 1))


def whole_images(images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """Return the view `WHOLE` of each image, uint8 [B, 3, height, width] of `size` (height, width)."""
    return torch.stack([torch.from_numpy(view_image(image, WHOLE, size)) for image in images])


def view_maps(maps: Tensor, windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mass of each map that falls into each cell of a grid laid over the window.

    A map is taken as a density that is constant on each of its cells; the mass in a new cell is its exact integral.
    Nothing is renormalised: a row of the result sums to the share of the word's mass that the window keeps, the w of
    the loss (objectives/interaction.py). The whole image on the same grid is the identity.

    Args:
        maps: [B, ..., gh, gw].
        windows: [B, 4], (left, top, right, bottom) in fractions of the image that the maps belong to.
        grid: (rows, columns) of the result.

    Returns:
        [B, ..., rows, columns], dtype of `maps`.
    """
    windows = windows.to(maps.dtype)
    across = interval_shares(windows[:, 0], windows[:, 2], grid[1], maps.shape[-1])  # [B, columns, gw]
    down = interval_shares(windows[:, 1], windows[:, 3], grid[0], maps.shape[-2])  # [B, rows, gh]
    flat = maps.reshape(len(maps), math.prod(maps.shape[1:-2]), *maps.shape[-2:])  # [B, K, gh, gw]
    result = down[:, None] @ flat @ across[:, None].transpose(-1, -2)
    return result.view(*maps.shape[:-2], *grid)


def interval_shares(start: Tensor, stop: Tensor, cells: int, source_cells: int) -> Tensor:
    """Share [B, cells, source_cells] of each source interval that lies in each cell of [start, stop]."""
    steps = torch.arange(cells + 1, device=start.device, dtype=start.dtype) / cells
    edges = start[:, None] + (stop - start)[:, None] * steps  # [B, cells + 1]
    source = torch.arange(source_cells + 1, device=start.device, dtype=start.dtype) / source_cells
    low = torch.maximum(edges[:, :-1, None], source[:-1])
    high = torch.minimum(edges[:, 1:, None], source[1:])
    return (high - low).clamp_min(0) * source_cells


def _functional() -> Any:
    """torchvision's functions: importing them takes two seconds, which only those who augment shall wait."""
    from torchvision.transforms.v2 import functional

    return functional


@dataclass(frozen=True, slots=True)
class Operation:
    """A photometric operation.

    Attributes:
        apply: (image, strength) -> changed image of the same size.
        strength: magnitude as a share of `TOP` -> strength.
        signed: whether the strength's sign is drawn.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    strength: Callable[[float], float]
    signed: bool = False


OPERATIONS: Mapping[str, Operation] = {
    "identity": Operation(lambda image, _: image, lambda _: 0.0),
    "autocontrast": Operation(lambda image, _: _functional().autocontrast(image), lambda _: 0.0),
    "equalize": Operation(lambda image, _: _functional().equalize(image), lambda _: 0.0),
    # factors 1 - 0.9 to 1 + 0.9; 1 changes nothing
    "brightness": Operation(lambda image, by: _functional().adjust_brightness(image, 1 + by), lambda m: 0.9 * m, True),
    "contrast": Operation(lambda image, by: _functional().adjust_contrast(image, 1 + by), lambda m: 0.9 * m, True),
    "saturation": Operation(lambda image, by: _functional().adjust_saturation(image, 1 + by), lambda m: 0.9 * m, True),
    "sharpness": Operation(lambda image, by: _functional().adjust_sharpness(image, 1 + by), lambda m: 0.9 * m, True),
    # bits that are kept, 8 to 4
    "posterize": Operation(lambda image, bits: _functional().posterize(image, int(bits)), lambda m: 8.0 - round(4 * m)),
    # pixels at or above the threshold are inverted, 256 (none) to 0 (all)
    "solarize": Operation(lambda image, least: _functional().solarize(image, least), lambda m: 256 * (1 - m)),
    # not of RandAugment
    "hue": Operation(lambda image, turn: _functional().adjust_hue(image, turn), lambda m: 0.2 * m, True),
    "greyscale": Operation(
        lambda image, _: _functional().rgb_to_grayscale(image, num_output_channels=3), lambda _: 0.0
    ),
    "blur": Operation(lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius)), lambda m: 2.0 * m),
}
"""Every operation by name; the strength is named in the comments, in units of the pixel range 0 to 255."""


@dataclass(frozen=True, slots=True)
class Change:
    """One drawn operation: its name in `OPERATIONS` and its strength."""

    name: str
    strength: float


def draw_changes(config: Photometric, rng: np.random.Generator) -> tuple[Change, ...]:
    """Draw the changes of one image, in the order in which they are applied.

    Give it a generator of its own: then switching it on does not change the crops that are drawn.
    """
    return tuple(_change(config, rng) for _ in range(config.ops))


def _change(config: Photometric, rng: np.random.Generator) -> Change:
    name = config.pool[int(rng.integers(len(config.pool)))]
    magnitude = min(max(float(rng.normal(config.magnitude, config.spread)), 0.0), TOP)
    sign = -1 if rng.random() < 0.5 else 1
    operation = OPERATIONS[name]
    strength = operation.strength(magnitude / TOP)
    return Change(name, sign * strength if operation.signed else strength)


def apply_changes(image: Image.Image, changes: Sequence[Change]) -> Image.Image:
    """Return an RGB image of the same size with `changes` made one after another."""
    for change in changes:
        image = OPERATIONS[change.name].apply(image, change.strength)
    return image

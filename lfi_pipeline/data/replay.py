"""Geometric augmentation that images and interaction maps go through together.

A map covers normalised image coordinates [0, 1]^2, so whatever window of the image a student sees can be cut out of it.
Order of operations: mirror the whole image, then cut the window, so that a stored map of the mirrored image (view
`hflip`) is cut exactly as the map of the image itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lfi_pipeline.data.photometric import Change, apply_changes
from lfi_pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Geometry:
    """One draw: mirror first, then keep the window (left, top, right, bottom) in fractions of the image."""

    flip: bool
    window: tuple[float, float, float, float]


WHOLE = Geometry(flip=False, window=(0.0, 0.0, 1.0, 1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Distribution of `Geometry`, that of random resized crop (Szegedy et al., CVPR 2015, section 6) and flip.

    Attributes:
        least_area: smallest share of the image's area that a window covers; 1 switches cropping off.
        aspect: largest ratio of the window's sides relative to the image's.
        flip: probability of mirroring.
    """

    least_area: float = 0.5
    aspect: float = 4 / 3
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.least_area <= 1 or self.aspect < 1 or not 0 <= self.flip <= 1:
            raise ConfigError(
                "least_area must be in (0, 1], aspect 1 or more and flip in [0, 1], "
                f"got {self.least_area}, {self.aspect}, {self.flip}."
            )

    def draw(self, rng: np.random.Generator) -> Geometry:
        """Draw one geometry; the same generator state gives the same geometry."""
        flip = bool(rng.random() < self.flip)
        area = rng.uniform(self.least_area, 1.0)
        aspect = math.exp(rng.uniform(-math.log(self.aspect), math.log(self.aspect)))
        width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
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


def view_maps(maps: Tensor, windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mass of each map that falls into each cell of a grid laid over the window.

    A map is taken as a density that is constant on each of its cells; the mass in a new cell is its exact integral.
    Nothing is renormalised: a row of the result sums to the share of the word's mass that the window keeps, the w_m of
    DESIGN section 5. The whole image on the same grid is the identity.

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

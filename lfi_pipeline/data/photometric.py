"""Photometric augmentation: changes of colour and sharpness that leave every pixel where it is.

RandAugment (Cubuk et al., arXiv 1909.13719) without its five geometric operations, so that interaction maps stay true
of the changed image. Strengths are those of the paper's code, on timm's scale of magnitudes from 0 to 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional

from lfi_pipeline.errors import ConfigError, UnknownNameError

TOP = 10.0
"""Largest magnitude."""


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
    "autocontrast": Operation(lambda image, _: functional.autocontrast(image), lambda _: 0.0),
    "equalize": Operation(lambda image, _: functional.equalize(image), lambda _: 0.0),
    # factors 1 - 0.9 to 1 + 0.9; 1 changes nothing
    "brightness": Operation(lambda image, by: functional.adjust_brightness(image, 1 + by), lambda m: 0.9 * m, True),
    "contrast": Operation(lambda image, by: functional.adjust_contrast(image, 1 + by), lambda m: 0.9 * m, True),
    "saturation": Operation(lambda image, by: functional.adjust_saturation(image, 1 + by), lambda m: 0.9 * m, True),
    "sharpness": Operation(lambda image, by: functional.adjust_sharpness(image, 1 + by), lambda m: 0.9 * m, True),
    # bits that are kept, 8 to 4
    "posterize": Operation(lambda image, bits: functional.posterize(image, int(bits)), lambda m: 8.0 - round(4 * m)),
    # pixels at or above the threshold are inverted, 256 (none) to 0 (all)
    "solarize": Operation(lambda image, least: functional.solarize(image, least), lambda m: 256 * (1 - m)),
    # not of RandAugment
    "hue": Operation(lambda image, turn: functional.adjust_hue(image, turn), lambda m: 0.2 * m, True),
    "greyscale": Operation(lambda image, _: functional.rgb_to_grayscale(image, num_output_channels=3), lambda _: 0.0),
    "blur": Operation(lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius)), lambda m: 2.0 * m),
}
"""Every operation by name; the strength is named in the comments, in units of the pixel range 0 to 255."""

RAND_AUGMENT = (
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "posterize",
    "solarize",
)


@dataclass(frozen=True, slots=True)
class Change:
    """One drawn operation: its name in `OPERATIONS` and its strength."""

    name: str
    strength: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Photometric:
    """Distribution of photometric changes.

    Attributes:
        ops: operations in a row for each image; 0 switches them off.
        magnitude: mean magnitude, 0 to 10 (timm's `m`; torchvision's divided by 3).
        spread: standard deviation of the magnitude, clipped to 0 to 10 (timm's `mstd`).
        pool: names that operations are drawn from, each equally often.
    """

    ops: int = 0
    magnitude: float = 9.0
    spread: float = 0.5
    pool: tuple[str, ...] = RAND_AUGMENT

    def __post_init__(self) -> None:
        if self.ops < 0 or not 0 <= self.magnitude <= TOP or not 0 <= self.spread <= TOP or not self.pool:
            raise ConfigError(
                f"ops must be 0 or more, magnitude and spread in [0, {TOP:g}] and the pool not empty, "
                f"got {self.ops}, {self.magnitude}, {self.spread} and a pool of {len(self.pool)}."
            )
        for name in self.pool:
            if name not in OPERATIONS:
                raise UnknownNameError("photometric operation", name, OPERATIONS)

    def draw(self, rng: np.random.Generator) -> tuple[Change, ...]:
        """Draw the changes of one image, in the order in which they are applied.

        Give it a generator of its own: then switching it on does not change the crops that are drawn.
        """
        return tuple(self._one(rng) for _ in range(self.ops))

    def _one(self, rng: np.random.Generator) -> Change:
        name = self.pool[int(rng.integers(len(self.pool)))]
        magnitude = min(max(float(rng.normal(self.magnitude, self.spread)), 0.0), TOP)
        sign = -1 if rng.random() < 0.5 else 1
        operation = OPERATIONS[name]
        strength = operation.strength(magnitude / TOP)
        return Change(name, sign * strength if operation.signed else strength)


def apply_changes(image: Image.Image, changes: Sequence[Change]) -> Image.Image:
    """Return an RGB image of the same size with `changes` made one after another."""
    for change in changes:
        image = OPERATIONS[change.name].apply(image, change.strength)
    return image

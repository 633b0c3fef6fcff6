"""Load an export as its users will, through timm alone, and compare it with the student it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from lfi_pipeline.data.replay import WHOLE, view_image
from lfi_pipeline.errors import ExportError
from lfi_pipeline.export.plain import INSIDE, TOLERANCE, PlainModel, difference, pooled
from lfi_pipeline.students import Student

_LOGIT_TOLERANCE = 1e-5  # a head that is a convolution in timm adds up in another order
_INPUT_TOLERANCE = 1e-5  # the same pixels, normalised in another order of operations
_NOISE = 4


@dataclass(frozen=True, slots=True)
class Check:
    """How far the export is from the student, in units of the larger of 1 and the largest magnitude.

    Attributes:
        images: how many images of the data set were compared.
        noise: how many images of noise.
        features: largest difference of pooled features.
        logits: largest difference of logits; None where the head is not in the timm model.
        inputs: largest difference between timm's transform of an image and what the student sees.
    """

    images: int
    noise: int
    features: float
    logits: float | None
    inputs: float


def noise_images(size: tuple[int, int]) -> list[Image.Image]:
    """Return images of random pixels, a little larger than `size` and not square, always the same ones."""
    generator = np.random.default_rng(0)
    shape = (size[0] + 19, size[1] + 7, 3)
    return [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for _ in range(_NOISE)]


@torch.no_grad()
def check_export(folder: Path, student: Student, plain: PlainModel, images: Sequence[Image.Image]) -> Check:
    """Compare the export in `folder` with `student` (on the CPU), on `images` and on noise.

    Raises:
        ExportError: timm cannot load it, or something differs by more than rounding.
    """
    student = student.eval()
    noise = noise_images(student.size)  # not square, so that a wrong way of cropping shows
    shown = [*images, *noise]
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, OSError) as error:
        raise ExportError(f"timm cannot load what was exported: {type(error).__name__}: {error}") from error
    pixels = torch.stack([torch.from_numpy(view_image(image, WHOLE, student.size)) for image in shown])
    x = (pixels.float() - student.mean) / student.std
    expected = student(pixels, with_taps=False)
    logits = expected.logits
    check = Check(
        images=len(images),
        noise=len(noise),
        features=difference(pooled(model, x), expected.pooled),
        logits=difference(model(x), logits) if plain.head == INSIDE and logits is not None else None,
        inputs=difference(_transformed(model, shown), x),
    )
    for name, value, most in (
        ("features", check.features, TOLERANCE),
        ("logits", check.logits or 0.0, _LOGIT_TOLERANCE),
        ("inputs", check.inputs, _INPUT_TOLERANCE),
    ):
        if not value <= most:
            raise ExportError(
                f"The {name} of the exported model must equal the trained student's within {most:g}, and differ by "
                f"{value:g} on {len(shown)} images. Nothing was written; this architecture cannot be exported with "
                f"timm {timm.__version__}."
            )
    return check


def _transformed(model: Any, images: Sequence[Image.Image]) -> Tensor:
    transform = create_transform(**resolve_data_config(model=model))
    return torch.stack([transform(image) for image in images])

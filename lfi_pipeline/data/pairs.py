"""Write a torch data set of (image, caption) pairs as tars, so that extraction and training can read them again."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from lfi_pipeline.core.errors import DatasetError, OutputWriteError
from lfi_pipeline.core.io import write_atomic

PER_TAR = 256
"""Pairs in one tar."""
SPLIT = "train"


class Pairs(Protocol):
    """A data set in torch's sense: a length, and items (image, caption)."""

    def __len__(self) -> int:
        """Return the number of pairs."""

    def __getitem__(self, index: int, /) -> Any:
        """Return (image, caption)."""


def write_pairs(pairs: Pairs, folder: Path) -> None:
    """Write every pair below `folder`, as the data set `webdataset` reads it, split `train`.

    Images are kept without loss (PNG). The same pairs give the same bytes, so a run that was stopped may write them
    again.

    Args:
        pairs: items (image, caption). An image is a PIL image, uint8 [H, W, 3] or [H, W] of numpy, or a tensor
            [3, H, W] or [1, H, W], uint8 or float in [0, 1]; a caption is a text or a list of texts.
        folder: gets `train-000000.tar`, ...; tars that are there already are replaced.

    Raises:
        DatasetError: no pairs, or an item that is no such pair; names it.
        OutputWriteError: `folder` cannot be written.
    """
    if not len(pairs):
        raise DatasetError("The data set must hold (image, caption) pairs, got none.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(pairs), PER_TAR):
            numbers = range(first, min(first + PER_TAR, len(pairs)))
            write_atomic(folder / f"{SPLIT}-{first // PER_TAR:06d}.tar", _tar(pairs, numbers))
    except OSError as error:
        raise OutputWriteError(f"Cannot write images to {folder}: {error.strerror or error}.") from error


def _tar(pairs: Pairs, numbers: range) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            for suffix, content in _members(pairs[number], number):
                member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _members(item: Any, number: int) -> Iterator[tuple[str, bytes]]:
    where = f"Item {number} of the data set"
    if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
        raise DatasetError(f"{where} must be a pair (image, caption), got {_described(item)}.")
    image, caption = item
    encoded = io.BytesIO()
    _as_image(image, where).save(encoded, format="PNG", compress_level=1)
    captions = [caption] if isinstance(caption, str) else caption
    if not isinstance(captions, Sequence) or not all(isinstance(each, str) for each in captions):
        raise DatasetError(f"{where}: a caption must be text or a list of texts, got {_described(caption)}.")
    yield "png", encoded.getvalue()
    yield "json", json.dumps({"captions": list(captions)}).encode()


def _as_image(image: Any, where: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels: Any = image
    if isinstance(image, Tensor):
        array = image.detach().cpu()
        if array.is_floating_point():
            array = (array.clamp(0, 1) * 255).round()
        pixels = array.to(dtype=array.dtype).numpy().astype(np.uint8)
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 and pixels.shape[0] in (1, 3) else None
        pixels = pixels.repeat(3, axis=2) if pixels is not None and pixels.shape[2] == 1 else pixels
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise DatasetError(
            f"{where}: an image must be a PIL image, uint8 [H, W, 3] of numpy or a tensor [3, H, W], got {_described(image)}."
        )
    return Image.fromarray(pixels).convert("RGB")


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return (
        type(value).__name__ if shape is None else f"{type(value).__name__} {list(shape)} {getattr(value, 'dtype', '')}"
    )

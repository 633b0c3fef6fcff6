"""A part of the training images to validate on, where a data set has no validation split of its own."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Dataset, SampleTable

DEFAULT_SHARE = 0.1
TRAIN, VAL, WHOLE = "train", "val", "all"
_NAMED = re.compile(r"(train|val)-(0\.[0-9]{1,4})")


def split_name(split: str, share: float) -> str:
    """Return the name of a part, which holds the share where it is not the usual one: `train`, `train-0.2`, `all`.

    Raises:
        DatasetError: the share is not from 0 to below 1.
    """
    if not 0 <= share < 1:
        raise DatasetError(f"val_share must be from 0 to below 1, got {share}.")
    if split not in (TRAIN, VAL) or share == DEFAULT_SHARE:
        return split
    if share == 0:
        return WHOLE if split == TRAIN else split
    return f"{split}-{round(share, 4):g}"


def parsed_split(name: str) -> tuple[str, float]:
    """Return split and share that a name stands for; the inverse of `split_name`."""
    found = _NAMED.fullmatch(name)
    return (found[1], float(found[2])) if found else (name, 0.0 if name == WHOLE else DEFAULT_SHARE)


def part_of(dataset: Dataset, split: str, share: float) -> Dataset:
    """Return the images of `train` or `val` out of all of them.

    An image belongs to `val` by a hash of its key alone, so it stays there when others are added, and a larger share
    holds a smaller one. Where no image is hit, the one with the smallest hash is taken.
    """
    if len(dataset) < 2:
        raise DatasetError(
            f"{dataset.root} must hold 2 images or more to validate on a part of them, got {len(dataset)}. Read split "
            f"{WHOLE!r}, or give a validation split."
        )
    numbers = [_number(sample.key) for sample in dataset.samples]
    smallest, wanted = min(numbers), split == VAL
    pairs = zip(dataset.samples, numbers, strict=True)
    table = SampleTable(sample for sample, number in pairs if (number < share or number == smallest) == wanted)
    if not table:
        raise DatasetError(f"{dataset.root}: a val_share of {share:g} leaves no image to train on.")
    return replace(dataset, samples=table)


def _number(key: str) -> float:
    """A number from 0 to below 1, uniform over keys."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / (1 << 48)

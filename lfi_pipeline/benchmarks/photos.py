"""JPEG files that cost what photographs cost to decode, in COCO's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

SIZE = (375, 500)
QUALITY = 90
# Six content words each, as COCO's captions have on average, and equally many tokens of CLIP's, so that it does not
# matter which captions share a batch.
CAPTIONS = (
    "a brown dog on a wooden table with some green plants",
    "a white bird on a stone wall with some dark clouds",
    "a red horse on a metal bridge with some yellow chairs",
    "a black cat on a glass window with some small boats",
)


def write_photo(path: Path, seed: int) -> None:
    """Write one colour texture of 500 x 375 pixels with the 1/f spectrum of natural images (Field, 1987)."""
    rng = np.random.default_rng(seed)
    rows, columns = SIZE
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    frequency[0, 0] = 1.0
    noise = np.fft.rfft2(rng.normal(size=(3, *SIZE))) / frequency
    texture = np.fft.irfft2(noise, s=SIZE)
    grey = texture[:1]  # the channels of a photograph are mostly one brightness
    mixed = 0.8 * grey + 0.4 * texture
    mixed = (mixed - mixed.mean((1, 2), keepdims=True)) / mixed.std((1, 2), keepdims=True)
    pixels = (mixed * 55 + 118).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=QUALITY)


def write_photos(root: Path, count: int, *, folder: str = "train2017") -> list[str]:
    """Write `count` photos; returns their POSIX paths below `root`."""
    paths = [f"{folder}/{i:012d}.jpg" for i in range(count)]
    for i, path in enumerate(tqdm(paths, desc="images", unit="image", leave=False)):
        write_photo(root / path, i)
    return paths


def write_coco(root: Path, paths: list[str]) -> None:
    """Describe photos, with one caption each and no objects, as the data set `coco`, split `train`."""
    images = [
        {"id": i, "file_name": Path(path).name, "height": SIZE[0], "width": SIZE[1]} for i, path in enumerate(paths)
    ]
    captions = [{"id": i, "image_id": i, "caption": CAPTIONS[i % len(CAPTIONS)]} for i in range(len(paths))]
    folder = root / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in (
        ("captions", {"images": images, "annotations": captions}),
        ("instances", {"images": images, "annotations": [], "categories": [{"id": 1, "name": "dog"}]}),
    ):
        (folder / f"{name}_train2017.json").write_text(json.dumps(body), encoding="utf-8")

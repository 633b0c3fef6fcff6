"""Image files with a synthetic cache of targets, as training reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from lfi_pipeline.benchmarks.photos import write_photos
from lfi_pipeline.benchmarks.synthetic import drawn_maps, labels_of, maps_spec, payload_of, write_targets
from lfi_pipeline.targets import PlannedSample, ShardPayload, TargetStore

MAPS_SHAPE = (4, 16, 16, 16)
"""Layers, words, rows and columns of the targets."""


def photo_cache(
    root: Path,
    images: int,
    *,
    maps_shape: tuple[int, ...] = MAPS_SHAPE,
    maps_of: Callable[[list[Path]], npt.NDArray[np.float32]] | None = None,
) -> TargetStore:
    """Write `images` JPEG files of 500 x 375 pixels and a cache with the views full and hflip, both alike.

    Args:
        root: an empty directory.
        images: how many.
        maps_shape: (L, M, gh, gw) of synthetic maps.
        maps_of: gives maps [images, L, M, gh, gw] for the files, in place of synthetic ones.
    """
    paths = write_photos(root, images)
    checksums = np.array([google_crc32c.value((root / path).read_bytes()) for path in paths], dtype=np.uint32)
    maps = maps_of([root / path for path in paths]) if maps_of is not None else None
    spec = maps_spec(samples=images, maps_shape=maps_shape if maps is None else maps.shape[1:], views=("full", "hflip"))
    plan = [
        PlannedSample(key=Path(path).stem, path=path, labels=labels_of(i), domain="", caption="")
        for i, path in enumerate(paths)
    ]

    def payload(positions: range) -> ShardPayload:
        rows = slice(positions.start, positions.stop)
        return payload_of(spec, drawn_maps(spec, positions) if maps is None else maps[rows], checksums[rows])

    write_targets(root / "targets", spec, payload, data_root=root, plan=plan)
    return TargetStore.open(root / "targets")

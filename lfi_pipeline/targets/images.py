"""The image of a cached sample, checked to be the one that the teacher saw."""

from __future__ import annotations

from PIL import Image

from lfi_pipeline.data.images import read_image
from lfi_pipeline.errors import CorruptTargetsError
from lfi_pipeline.targets.reader import TargetStore


def checked_image(store: TargetStore, position: int) -> Image.Image:
    """Return the image of a sample as RGB, after its checksum was compared with the cache's.

    Raises:
        ImageReadError: it cannot be read.
        CorruptTargetsError: it is not the image that the teacher saw.
    """
    path = store.data_root / store.index.paths[position]
    image, checksum = read_image(path)
    recorded = int(store.index.image_crc32c[position])
    if checksum != recorded:
        raise CorruptTargetsError(
            f"{path} (sample {store.index.keys[position]}) is not the image that the teacher saw: its crc32c is "
            f"{checksum:08x}, the cache recorded {recorded:08x}. Restore the image, or extract targets anew."
        )
    return image

"""Images that a cache refers to, checked against its index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
from PIL import Image

from lfi_pipeline.data.images import decode_image, read_bytes
from lfi_pipeline.data.paths import split_tar_path, why_unsafe
from lfi_pipeline.errors import CorruptTargetsError, ImageReadError

if TYPE_CHECKING:
    from lfi_pipeline.targets.reader import TargetStore


def sample_image(store: TargetStore, position: int) -> Image.Image:
    """Return the image of a sample as RGB; raises as `checked_image`, and ImageReadError where it is none."""
    path, recorded = store.index.paths[position], int(store.index.image_crc32c[position])
    return decode_image(checked_image(store.data_root, path, recorded, store.index.keys[position]), path)


def image_present(root: Path, path: str) -> bool:
    """Whether there is a file that the image would be read from; its content is not looked at."""
    member = split_tar_path(path)
    return why_unsafe(path) is None and (root / (member[0] if member else path)).is_file()


def checked_image(data_root: Path, path: str, crc32c: int, key: str) -> bytes:
    """The bytes of the image of a sample, as they were when the teacher saw it.

    Args:
        data_root: where it lies.
        path: of it below `data_root`, as `TargetIndex.paths` gives it.
        crc32c: recorded of its bytes.
        key: of the sample, for messages.

    Raises:
        CorruptTargetsError: it is missing, or is another; names it.
    """
    where = f"Image {path} (sample {key}) below {data_root}"
    try:
        content = read_bytes(data_root, path)
    except ImageReadError as error:
        text = str(error).removesuffix(".")
        raise CorruptTargetsError(f"{where} cannot be read: {text}. Restore it, or say where images lie.") from error
    found = int(google_crc32c.value(content))
    if found != crc32c:
        raise CorruptTargetsError(
            f"{where} is not the image that the teacher saw: its crc32c is {found:08x}, the cache recorded "
            f"{crc32c:08x}. Restore the image, or extract targets anew."
        )
    return content

"""Bytes of the images that a cache refers to, checked against its index."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import google_crc32c

from lfi_pipeline.errors import CorruptTargetsError
from lfi_pipeline.targets.tarview import read_range

_PLACE = re.compile(r"(.+\.tar)#(\d{1,18})\+(\d{1,18})", re.DOTALL)


def image_bytes(root: Path, path: str) -> bytes:
    """Bytes of an image below `root`; `FILE.tar#OFFSET+SIZE` names a part of a tar.

    Raises:
        ValueError: the path leads out of `root`, or the part does not lie in the file.
        OSError: the file cannot be read.
    """
    found = _PLACE.fullmatch(path)
    name = found[1] if found else path
    if "\0" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{path!r} is not a path below the data root")
    return read_range(root / name, int(found[2]), int(found[3])) if found else (root / name).read_bytes()


def image_present(root: Path, path: str) -> bool:
    """Whether there is a file that `image_bytes` would read; its content is not looked at."""
    found = _PLACE.fullmatch(path)
    return (root / (found[1] if found else path)).is_file()


def checked_image(data_root: Path, path: str, crc32c: int, key: str) -> bytes:
    """The image of a sample, as it was when the teacher saw it.

    Args:
        data_root: where it lies.
        path: of it below `data_root`.
        crc32c: recorded of its bytes.
        key: of the sample, for messages.

    Raises:
        CorruptTargetsError: it is missing, or is another; names it.
    """
    where = f"Image {path} (sample {key}) below {data_root}"
    try:
        content = image_bytes(data_root, path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CorruptTargetsError(f"{where} cannot be read: {reason}. Restore it, or say where images lie.") from error
    found = int(google_crc32c.value(content))
    if found != crc32c:
        raise CorruptTargetsError(
            f"{where} is not the image that the teacher saw: its crc32c is {found:08x}, the cache recorded "
            f"{crc32c:08x}. Restore the image, or extract targets anew."
        )
    return content

"""What names of files and folders tell: images, the system's litter, splits, dates."""

from __future__ import annotations

import os
import re

_ENDINGS = "jpg jpeg jpe jfif png webp gif bmp tif tiff ppm pgm pbm pnm jp2 j2k avif ico"
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})  # of Windows, macOS, network storage
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_DATE = re.compile(r"(19|20)\d\d([-_. ]?(0[1-9]|1[0-2])([-_. ]?(0[1-9]|[12]\d|3[01]))?)?|0[1-9]|1[0-2]")
_CAMERA = re.compile(r"\d{3}[A-Z_0-9]{5}|DCIM", re.IGNORECASE)  # as the rule of camera file systems has them


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the operating system's and not the data set's."""
    return name.startswith(".") or name.lower() in _LITTER


def is_image(name: str) -> bool:
    """Whether `name` ends like an image file, in either case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - called once a file, Path costs 20 times


def split_named(name: str) -> str | None:
    """Return `train`, `val` or `test` for what tools call such a split, also with a year; None for other names."""
    return _SPLITS.get(re.sub(r"[-_]?\d{4}$", "", name.lower()))


def is_no_class(name: str) -> bool:
    """Whether a folder of this name is of a time or of a camera, and not of a class: `2023`, `05`, `100CANON`."""
    return bool(_DATE.fullmatch(name) or _CAMERA.fullmatch(name))

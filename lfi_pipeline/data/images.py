"""Read images from files, tars and Parquet files as upright RGB, with the checksum of their bytes."""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from lfi_pipeline.core.errors import ImageReadError
from lfi_pipeline.core.io import split_tar_path, why_unsafe

_IN_PARQUET = re.compile(r"^(.+\.parquet)#([A-Za-z0-9_. -]{1,64}):([0-9]{1,12})$", re.DOTALL)
_LARGEST_GROUP = 1 << 32  # bytes of images, unpacked


def split_parquet_path(path: str) -> tuple[str, str, int] | None:
    """Split `data/train.parquet#image:12` into file, column and row; None for the path of anything else."""
    match = _IN_PARQUET.match(path)
    return (match[1], match[2], int(match[3])) if match else None


def parquet_path(file: str, column: str, row: int) -> str:
    """Return the path of the image in `row` of `file`."""
    return f"{file}#{column}:{row}"


def read_parquet_image(file: Path, column: str, row: int, path: str) -> bytes:
    """Return the bytes of an image; `path` is for messages.

    Raises:
        ImageReadError: there is no such file, column or row, or it holds no image.
    """
    try:
        state = file.stat()
        starts = _starts(str(file), state.st_mtime_ns, state.st_size)
        group = next((number for number, end in enumerate(starts[1:]) if row < end), None)
        if group is None:
            raise ImageReadError(f"{path}: the file has {starts[-1]} rows; it is not the one that was listed")
        value = _group(str(file), column, group, state.st_mtime_ns)[row - starts[group]].as_py()
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        if isinstance(error, ImageReadError):
            raise
        raise ImageReadError(f"{path}: {error}") from error
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise ImageReadError(f"{path}: must hold the bytes of an image, got {type(content).__name__}")
    return content


@functools.lru_cache(maxsize=64)
def _starts(file: str, mtime: int, size: int) -> tuple[int, ...]:
    metadata = pq.read_metadata(file)
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return tuple(starts)


@functools.lru_cache(maxsize=2)
def _group(file: str, column: str, group: int, mtime: int) -> Any:
    with pq.ParquetFile(file) as source:
        if source.metadata.row_group(group).total_byte_size > _LARGEST_GROUP:
            raise ImageReadError(f"{file}: a row group must have at most {_LARGEST_GROUP} bytes")
        return source.read_row_group(group, columns=[column]).column(column)


LINKS_VARIABLE = "LFI_LINKS"
LARGEST_FILE = 1 << 30  # bytes; no photograph is larger, and a wrong path may name anything

_TWELVE_BITS = 4095.0
_LOGGER = logging.getLogger(__name__)
# Formats with a decoder that only decodes: Pillow would hand an EPS file to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def read_image(root: Path, path: str, least: int = 0) -> tuple[Image.Image, int, int]:
    """Return the image at `path` below `root` as upright RGB, the crc32c of its file's bytes and their number.

    Args:
        root: data root.
        path: POSIX path below it, as `read_bytes` takes it.
        least: as `decode_image` takes it.

    Raises:
        ImageReadError: missing, truncated, not an image, or so large that decoding it is unsafe.
    """
    content = read_bytes(root, path)
    return decode_image(content, path, least), int(google_crc32c.value(content)), len(content)


def read_bytes(root: Path, path: str) -> bytes:
    """Return the bytes of the image at `path`, a POSIX path below `root`.

    `shards/a.tar#1536+33122` stands for 33122 bytes at offset 1536 of that tar, `a.parquet#image:12` for row 12 of a
    column. Every call opens the file for itself, so that forked workers and threads never share a position.

    Raises:
        ImageReadError: the path leaves the root, itself or by a link, no such file, or the tar ends before the bytes
            do.
    """
    reason = why_unsafe(path)
    if reason is not None:
        raise ImageReadError(f"{path!r}: an image path must stay below the data root, and this one {reason}")
    row = split_parquet_path(path)
    member = split_tar_path(path)
    name, offset, size = member or (path, 0, None)
    try:
        if row is not None:
            require_inside(root, row[0])
            return read_parquet_image(root / row[0], row[1], row[2], path)
        # Opened without blocking: a named pipe in place of an image would otherwise be waited for.
        require_inside(root, name)
        descriptor = os.open(root / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _read_at(descriptor, offset, size, path)
        finally:
            os.close(descriptor)
    except ImageReadError:
        raise
    except (OSError, ValueError) as error:
        raise ImageReadError(f"{path}: {getattr(error, 'strerror', None) or error} (in {root})") from error


def require_inside(root: Path, path: str) -> None:
    """Refuse a path that a link leads out of `root`: what is read may be packed into tars and shared.

    Nothing is refused where the environment variable `LFI_LINKS` is `follow`.

    Raises:
        ImageReadError: it lies elsewhere.
    """
    if os.environ.get(LINKS_VARIABLE) == "follow":
        return
    place = os.path.realpath(root / path)
    if not place.startswith(_real_root(str(root))):
        raise ImageReadError(
            f"{path}: must lie in {root}, and is a link to {place}. Copy it there, or set {LINKS_VARIABLE}=follow to "
            "read what links lead to"
        )


@functools.lru_cache(maxsize=16)
def _real_root(root: str) -> str:
    return os.path.join(os.path.realpath(root), "")  # noqa: PTH118 - with a separator at its end


def file_of(path: str) -> str:
    """Return the path of the file that the image at `path` is read from, which may be a tar or a Parquet file."""
    container = split_tar_path(path) or split_parquet_path(path)
    return container[0] if container is not None else path


def _read_at(descriptor: int, offset: int, size: int | None, path: str) -> bytes:
    """Read `size` bytes at `offset`, the whole file for None."""
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        raise ImageReadError(f"{path}: must be a file, and is a directory or a device")
    wanted = state.st_size if size is None else size
    if offset + wanted > state.st_size:
        raise ImageReadError(
            f"{path}: the tar ends at byte {state.st_size}; it is not the one that was listed, or it was cut off"
        )
    if wanted > LARGEST_FILE:
        raise ImageReadError(f"{path}: {wanted} bytes are too many for an image (at most {LARGEST_FILE})")
    parts: list[bytes] = []
    while wanted:
        part = os.pread(descriptor, wanted, offset)
        if not part:
            raise ImageReadError(f"{path}: the file became shorter while it was read")
        parts.append(part)
        offset, wanted = offset + len(part), wanted - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def decode_image(content: bytes, name: str, least: int = 0) -> Image.Image:
    """Decode an image to upright RGB, of an animation the first frame.

    Args:
        content: bytes of the file.
        name: for messages.
        least: pixels that each side of a JPEG must keep: it is decoded at a half, a quarter or an eighth where both
            sides have as many then. 0 decodes whole images.

    Raises:
        ImageReadError: as `read_image`.
    """
    _quiet_pillow()
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            # Not by turning Pillow's warning into an error: warning filters are shared by all threads, and images are
            # read in several.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if least and image.format == "JPEG":
                image.draft(image.mode, (least, least))
            image.load()
            return _to_rgb(_upright(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageReadError(f"{name}: too many pixels to decode safely ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageReadError(f"{name}: not an image file of a known format ({', '.join(_formats())})") from error
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # whatever a damaged file makes a decoder raise: struct.error, TypeError, KeyError, ...
        raise ImageReadError(f"{name}: broken image file ({error or type(error).__name__})") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this build of Pillow has; JPEG 2000, WebP and AVIF are optional in it."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _quiet_pillow() -> None:
    """Drop Pillow's warnings about odd files (corrupt EXIF and the like): the image is read or refused here.

    The filter stays. Warning filters are one list for all threads, so none can be set and taken back around a call.
    """
    if warnings.filters[:1] != [_PILLOW_WARNINGS]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def _upright(image: Image.Image) -> Image.Image:
    """Undo the rotation or mirroring in the EXIF metadata; where that cannot be read, return the image as it is.

    Not by Pillow's `exif_transpose`, which writes the other tags anew and fails at values that it read itself.
    """
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # whatever damaged metadata makes the parser raise
        turn = None
    return image.transpose(turn) if turn is not None else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit and wider: Pillow's convert would clip, not scale
        return Image.fromarray(_to_bytes(image)).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


@functools.cache
def _say_twelve_bits() -> None:
    """Warn, once a process, that a 16-bit image is read as one of 12 bits."""
    _LOGGER.warning(
        "An image of 16 bits holds values of 12 (at most 4095): it is read as of 12 bits, and so are others like it."
    )


def _to_bytes(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Scale wide pixels [H, W] to 0..255, from the range that the mode, or else the largest value, implies.

    Cameras and microscopes leave 12 bits in files of 16, so values from 256 to 4095 are of 12.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = values.max(initial=0)
    if image.mode.startswith("I") and 255 < largest <= _TWELVE_BITS:
        top = _TWELVE_BITS
        _say_twelve_bits()
    elif image.mode.startswith("I;16") or largest > 255:
        top = 65535.0
    else:
        top = 1.0 if image.mode == "F" and largest <= 1 else 255.0
    return (values / top * 255).clip(0, 255).astype(np.uint8)

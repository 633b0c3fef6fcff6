"""Read image files as the world has them, into plain RGB, with the checksum of their bytes."""

from __future__ import annotations

import io
from pathlib import Path

import google_crc32c
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lfi_pipeline.errors import ImageReadError


def read_image(path: Path) -> tuple[Image.Image, int]:
    """Return the image as RGB, turned upright by its EXIF tag, and the crc32c of the file's bytes.

    Raises:
        ImageReadError: missing, truncated, not an image, or so large that decoding it is unsafe.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageReadError(f"{path}: {error.strerror or error}") from error
    return decode_image(content, str(path)), int(google_crc32c.value(content))


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode `content` to RGB; `name` is for messages. Raises as `read_image`."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            # Not by turning Pillow's warning into an error: warning filters are shared by all threads, and images are
            # read in several.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageReadError(f"{name}: too many pixels to decode safely ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageReadError(f"{name}: not an image file that Pillow knows") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageReadError(f"{name}: broken image file ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit and wider: Pillow's convert would clip, not scale
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8), mode="L").convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")

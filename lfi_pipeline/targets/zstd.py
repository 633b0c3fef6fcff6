"""Zstandard frames of a size that is known beforehand."""

from __future__ import annotations

from numcodecs.zstd import Zstd

_MAGIC = b"\x28\xb5\x2f\xfd"


def compress(data: bytes, level: int) -> bytes:
    """One frame that says how large its content is."""
    frame: bytes = Zstd(level=level).encode(data)
    return frame


def decompress(frame: bytes, size: int) -> bytes:
    """Undo `compress`; a frame that says another size is refused before anything is allocated for it.

    Raises:
        ValueError: it is not a frame of `size` bytes.
    """
    found = _content_size(frame)
    if found != size:
        raise ValueError(f"the frame cannot be decompressed: it holds {found} bytes, not {size}")
    try:
        content: bytes = Zstd().decode(frame) if size else b""
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the frame cannot be decompressed: {error}") from error
    return content


def _content_size(frame: bytes) -> int | None:
    """What the header of a frame says of its content (RFC 8878, 3.1.1.1); None where it says nothing."""
    if len(frame) < 6 or frame[:4] != _MAGIC:
        return None
    flags = frame[4]
    single, code = flags >> 5 & 1, flags >> 6
    width = (1 if single else 0) if code == 0 else 1 << code
    if not width:
        return None
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    field = frame[start : start + width]
    if len(field) < width:
        return None
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)

"""Lossless compressors, applied to one sample at a time as the cache's inner chunks are."""

from __future__ import annotations

from typing import Protocol, cast

from numcodecs import Blosc, Zstd  # type: ignore[import-untyped]


class Compressor(Protocol):
    """What numcodecs calls a codec."""

    def encode(self, buf: object) -> bytes: ...
    def decode(self, buf: bytes) -> bytes: ...


class Keep:
    """No compression."""

    def encode(self, buf: object) -> bytes:
        return bytes(cast(bytes, buf))

    def decode(self, buf: bytes) -> bytes:
        return buf


def compressors() -> dict[str, Compressor]:
    """Every compressor by name. Blosc's byte shuffle does nothing to types of one byte, its bit shuffle does."""
    found: dict[str, Compressor] = {"none": Keep(), "zstd 3": Zstd(level=3), "zstd 9": Zstd(level=9)}
    for name in ("zstd", "lz4"):
        for label, mode in (("shuffle", Blosc.SHUFFLE), ("bitshuffle", Blosc.BITSHUFFLE)):
            found[f"blosc {name} {label}"] = Blosc(cname=name, clevel=3 if name == "zstd" else 5, shuffle=mode)
    return found

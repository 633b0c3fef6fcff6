"""Ways to turn a map into few bytes, to be compared; those that are used live in `lfi_pipeline.targets.codec`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lfi_pipeline.targets import CODECS, decode_maps, encode_maps

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]
FLOOR = 1e-3
"""Share of a top-k row that is spread evenly over all cells, where nothing is stored of what was dropped."""


class Candidate(Protocol):
    """A lossy codec of rows [n, R, N]: n samples of R rows of N cells, each row summing to 1.

    `encode` returns the array that a compressor sees, a sample at a time along its first axis, and one of numbers a
    row that is kept as it is. `decode` undoes it.
    """

    def encode(self, rows: Floats) -> tuple[Array, Array]: ...
    def decode(self, codes: Array, side: Array) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Half:
    """Plain fp16; a cell that would underflow keeps the smallest number, or KL would be infinite."""

    def encode(self, rows: Floats) -> tuple[Array, Array]:
        tiny = np.finfo(np.float16).smallest_subnormal
        return np.maximum(rows.astype(np.float16), np.where(rows > 0, tiny, np.float16(0))), _nothing(rows)

    def decode(self, codes: Array, side: Array) -> Floats:
        return codes.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Stored:
    """A codec of `lfi_pipeline.targets.codec`, through its own functions."""

    name: str

    def encode(self, rows: Floats) -> tuple[Array, Array]:
        codes, scale = encode_maps(rows[..., None, :], self.name)
        return codes[..., 0, :], scale

    def decode(self, codes: Array, side: Array) -> Floats:
        maps = decode_maps(codes[..., None, :].astype(np.uint8), side.astype(np.float16), self.name)
        return maps[..., 0, :]


@dataclass(frozen=True, slots=True)
class Companded:
    """`lfi_pipeline.targets.codec`'s formula with any number of codes and any root.

    Attributes:
        levels: the largest code.
        power: k, so that a code is the k-th root of the cell over the row's peak.
        packed: two codes of 4 bits in a byte; otherwise a byte a code, for the compressor to squeeze.
    """

    levels: int
    power: int
    packed: bool = False

    def encode(self, rows: Floats) -> tuple[Array, Array]:
        peak = rows.max(-1, keepdims=True)
        relative = (rows / np.where(peak > 0, peak, 1)) ** np.float32(1 / self.power)
        codes = np.maximum(np.rint(relative * self.levels), rows > 0).astype(np.uint8)
        total = ((codes / self.levels) ** self.power).sum(-1)
        scale = (1 / np.where(total > 0, total, 1)).astype(np.float16)
        return (codes[..., ::2] << 4 | codes[..., 1::2]) if self.packed else codes, scale

    def decode(self, codes: Array, side: Array) -> Floats:
        whole = codes.astype(np.uint8)
        if self.packed:
            whole = np.stack([whole >> 4, whole & 15], axis=-1).reshape(*whole.shape[:-1], -1)
        table = ((np.arange(256) / self.levels) ** self.power).astype(np.float32)
        decoded: Floats = table[whole] * side.astype(np.float32)[..., None]
        return decoded


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest cells: a byte for the place (at most 256 cells) and one for the square root of the value.

    Attributes:
        k: cells kept.
        rest: also keep each row's dropped mass (fp16) and spread it evenly over the cells that were not kept. Without
            it the kept cells are renormalised to 1 - `FLOOR`, and `FLOOR` is spread evenly over all cells.
    """

    k: int
    rest: bool = False

    def encode(self, rows: Floats) -> tuple[Array, Array]:
        places = np.sort(np.argpartition(rows, -self.k, axis=-1)[..., -self.k :], axis=-1)
        values = np.take_along_axis(rows, places, axis=-1)
        peak = values.max(-1, keepdims=True)
        codes = np.rint(np.sqrt(values / np.where(peak > 0, peak, 1)) * 255).astype(np.uint8)
        dropped = (1 - values.sum(-1)).clip(0) if self.rest else np.full(rows.shape[:-1], FLOOR)
        return np.concatenate([places.astype(np.uint8), codes], axis=-1), dropped.astype(np.float16)

    def decode(self, codes: Array, side: Array) -> Floats:
        places, roots = codes[..., : self.k].astype(np.intp), codes[..., self.k :].astype(np.float32)
        values = roots * roots
        total = values.sum(-1, keepdims=True)
        spread = side.astype(np.float32)[..., None]
        values = values / np.where(total > 0, total, 1) * (1 - spread)
        cells = 256
        decoded = np.zeros((*codes.shape[:-1], cells), np.float32)
        if self.rest:
            decoded += spread / (cells - self.k)
        np.put_along_axis(decoded, places, values.astype(np.float32), axis=-1)
        if not self.rest:
            decoded += spread / cells
        return decoded


def candidates() -> dict[str, Candidate]:
    """Every candidate by name; those in `CODECS` go through the code that the cache uses."""
    found: dict[str, Candidate] = {"fp16": Half()}
    found |= {name: Stored(name) for name in CODECS}
    found |= {
        f"uint{bits}_{root}": Companded(levels=2**bits - 1, power=power)
        for bits in (8, 6, 5, 4)
        for root, power in (("sqrt", 2), ("cbrt", 3), ("4th", 4))
        if f"uint{bits}_{root}" not in found
    }
    found |= {f"uint4_{root}, packed": Companded(15, power, packed=True) for root, power in (("sqrt", 2), ("4th", 4))}
    found |= {f"top {k}": TopK(k) for k in (16, 32, 64)}
    return found | {f"top {k} + rest": TopK(k, rest=True) for k in (16, 32, 64)}


def _nothing(rows: Floats) -> Array:
    return np.zeros((*rows.shape[:-1], 0), np.float16)

"""Read one inner chunk of a Zarr v3 shard with positioned reads: no threads, so it works in a forked process.

tensorstore aborts a process that was forked after its parent had used tensorstore, and PyTorch's loaders fork
by default on Linux. This reader stands in there, and where a damaged shard must be searched sample by sample.
It knows only the codec chain that `layout` writes: bytes, zstd, crc32c; a checked index ends the shard.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from lfi_pipeline.targets.layout import ArrayLayout, shard_key
from lfi_pipeline.targets.zstd import decompress

_ABSENT = 2**64 - 1


class ShardFiles:
    """The shard files of one array; holds their indices, but no open files."""

    def __init__(self, folder: Path, layout: ArrayLayout) -> None:
        """
        Args:
            folder: folder of the array.
            layout: of the array.
        """
        self._folder, self._layout = folder, layout
        self._indices: dict[int, npt.NDArray[np.uint64]] = {}

    def read(self, position: int) -> npt.NDArray[np.generic]:
        """Read one sample [*tail].

        Raises:
            ValueError: the shard's file is damaged at this sample, or its index is.
            OSError: the file is missing or cannot be read.
        """
        layout = self._layout
        shard, within = divmod(position, layout.shard)
        chunk, row = divmod(within, layout.inner)
        descriptor = os.open(self._folder / shard_key(layout, shard), os.O_RDONLY)
        try:
            if shard not in self._indices:
                self._indices[shard] = self._read_index(descriptor)
            offset, length = map(int, self._indices[shard][chunk])
            if offset == _ABSENT and length == _ABSENT:
                return np.full(layout.tail, layout.fill, dtype=layout.dtype)
            data = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
        decoded = self._decode(data, length)
        chunk_array = np.frombuffer(decoded, dtype=np.dtype(layout.dtype)).reshape(layout.inner, *layout.tail)
        sample: npt.NDArray[np.generic] = chunk_array[row]
        return sample

    def read_many(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.generic]:
        """Read samples one after another, stacked [B, *tail]; raises as `read` does."""
        result = np.empty((len(positions), *self._layout.tail), dtype=self._layout.dtype)
        for row, position in enumerate(positions.tolist()):
            result[row] = self.read(position)
        return result

    def _read_index(self, descriptor: int) -> npt.NDArray[np.uint64]:
        chunks = self._layout.shard // self._layout.inner
        size = 16 * chunks + 4
        data = os.pread(descriptor, size, max(os.fstat(descriptor).st_size - size, 0))
        if len(data) != size or not _matches(data):
            raise ValueError("the shard's index does not match its crc32c")
        return np.frombuffer(data[:-4], dtype="<u8").reshape(chunks, 2)

    def _decode(self, data: bytes, length: int) -> bytes:
        if len(data) != length or length < 4 or not _matches(data):
            raise ValueError("the chunk does not match its crc32c")
        layout = self._layout
        size = layout.inner * math.prod(layout.tail) * np.dtype(layout.dtype).itemsize
        return decompress(data[:-4], size)


def _matches(data: bytes) -> bool:
    found: int = google_crc32c.value(data[:-4])
    return found == int.from_bytes(data[-4:], "little")

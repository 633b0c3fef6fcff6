"""Random reads of one view from the tars of the webdataset layout.

Positioned reads and no threads, so that forked and spawned workers can read alike.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lfi_pipeline.errors import CorruptTargetsError
from lfi_pipeline.targets.arrays import Arrays, first_line
from lfi_pipeline.targets.commits import remedy
from lfi_pipeline.targets.index import TargetIndex
from lfi_pipeline.targets.layout import array_layouts, tar_file
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.tarshard import ViewCodec, view_kind


class TarView:
    """One view of a cache in the webdataset layout; holds places of members by shard, but no open files."""

    def __init__(self, root: Path, spec: TargetSpec, index: TargetIndex, view: str) -> None:
        """
        Args:
            root: the cache.
            spec: of the cache.
            index: of the cache; its parts say where members lie.
            view: name of the view.
        """
        self._root, self._index, self._view = root, index, view
        self._codec, self._per_shard = ViewCodec(spec), spec.samples_per_shard
        self._layouts = array_layouts(spec)
        self._places: dict[int, npt.NDArray[np.int64]] = {}

    def read(self, positions: npt.NDArray[np.int64]) -> Arrays:
        """The view's arrays by name, each stacked [B, *tail].

        Raises:
            CorruptTargetsError: stored bytes are missing or do not match their checksum; names shard and sample.
        """
        result: Arrays = {
            name: np.full((len(positions), *array.tail), array.fill, dtype=array.dtype)
            for name, array in self._layouts.items()
        }
        for row, position in enumerate(positions.tolist()):
            for name, array in self._sample(position).items():
                result[name][row] = array
        return result

    def _sample(self, position: int) -> Arrays:
        """Arrays of one sample; none of a quarantined one."""
        shard, row = divmod(position, self._per_shard)
        offset, size = self._places_of(shard)[row].tolist()
        if offset < 0:
            return {}
        try:
            return self._codec.decode(read_range(self._root / tar_file(shard), offset, size))
        except (ValueError, OSError) as error:
            raise CorruptTargetsError(
                f"Cannot read shard {shard}, view {self._view}, sample {position} of {self._root}: "
                f"{first_line(error)} {remedy(self._root, shard)}"
            ) from error

    def _places_of(self, shard: int) -> npt.NDArray[np.int64]:
        if shard not in self._places:
            columns = [f"{view_kind(self._view)}.{what}" for what in ("offset", "size")]
            table = self._index.read_part(shard, columns)
            values = [table[name].combine_chunks().fill_null(-1).to_numpy() for name in columns]
            self._places[shard] = np.stack(values, axis=1)
        return self._places[shard]


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file.

    Raises:
        ValueError: the range does not lie in the file.
        OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if offset < 0 or size < 0 or offset + size > os.fstat(descriptor).st_size:
            raise ValueError(f"{path.name} ends before byte {offset + size}")
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)

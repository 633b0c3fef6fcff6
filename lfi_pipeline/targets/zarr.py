"""Zarr arrays: through tensorstore, and by positioned reads that work in a forked process.

Random reads of single samples are an order of magnitude faster through tensorstore than through zarr-python. But
tensorstore runs threads, and aborts a process that was forked after its parent had used it; PyTorch's loaders fork by
default on Linux. `ZarrView` therefore falls back to `ShardFiles` in such a process. `ShardFiles` also serves where a
damaged shard must be searched sample by sample. It knows only the codec chain that `commits.zarr_metadata` writes:
bytes, zstd, crc32c, and an index with a checksum at the end of the shard.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import google_crc32c
import numpy as np
import numpy.typing as npt
import tensorstore as ts

from lfi_pipeline.core.errors import CorruptTargetsError
from lfi_pipeline.core.io import read_whole
from lfi_pipeline.targets.codec import decompress
from lfi_pipeline.targets.commits import (
    CLASSES,
    VOCABULARY,
    ArrayLayout,
    array_folder,
    array_layouts,
    remedy,
    shard_key,
)
from lfi_pipeline.targets.manifest import Manifest

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
    checksum: int = google_crc32c.value(data[:-4])
    return checksum == int.from_bytes(data[-4:], "little")


Arrays = dict[str, npt.NDArray[np.generic]]
T = TypeVar("T")

CACHE_BYTES = 64 * 2**20
"""Memory that one open store spends on shard indices and recently decoded chunks."""

_first_user: int | None = None  # the process in which tensorstore's threads run


class ArrayReader(Protocol):
    """Random access to the samples of one array."""

    def start(self, positions: npt.NDArray[np.int64]) -> Callable[[], npt.NDArray[np.generic]]:
        """Begin reading samples; the returned function waits and gives them stacked, [B, *tail].

        It raises ValueError or OSError where a shard is damaged or missing.
        """
        ...


class ViewReader(Protocol):
    """Random access to the samples of one view, in either layout."""

    def read(self, positions: npt.NDArray[np.int64], names: Collection[str] | None = None) -> Arrays:
        """The view's arrays by name, each stacked [B, *tail]; of `names` alone where they are given.

        Raises:
            CorruptTargetsError: stored bytes are missing or do not match their checksum; names shard and sample.
        """
        ...


class ZarrView:
    """One view of a cache in the zarr layout."""

    def __init__(self, root: Path, manifest: Manifest, view: str, context: Any) -> None:
        """
        Args:
            root: the cache.
            manifest: of the cache.
            view: name of the view.
            context: from `new_context`, in this process.

        Raises:
            CorruptTargetsError: metadata of an array is damaged.
        """
        self._root, self._view, self._per_shard = root, view, manifest.spec.samples_per_shard
        self._arrays: dict[str, ArrayReader] = {}
        for metadata in sorted(manifest.files.keys() - {*VOCABULARY, *CLASSES}):
            complaint = manifest.files[metadata].complaint(read_whole(root / metadata))
            if complaint:
                raise CorruptTargetsError(
                    f"{root / metadata} {complaint}. Run the same extract command again to restore it."
                )
        for name, layout in array_layouts(manifest.spec).items():
            folder = array_folder(view, name)
            try:
                self._arrays[name] = _open_array(root / folder, layout, context)
            except (ValueError, OSError) as error:
                raise CorruptTargetsError(f"Cannot open {root / folder}: {first_line(error)}") from error

    def read(self, positions: npt.NDArray[np.int64], names: Collection[str] | None = None) -> Arrays:
        """As `ViewReader.read`; all arrays are read at once."""
        try:
            wanted = {name: array for name, array in self._arrays.items() if names is None or name in names}
            started = {name: array.start(positions) for name, array in wanted.items()}
            return {name: wait() for name, wait in started.items()}
        except (ValueError, OSError) as error:
            raise self._locate(positions, error) from error

    def _locate(self, positions: npt.NDArray[np.int64], error: Exception) -> CorruptTargetsError:
        """Find the first sample and array behind a failed read."""
        for position in positions:
            for name, array in self._arrays.items():
                try:
                    _wait(array.start(np.asarray([position])))
                except (ValueError, OSError) as cause:
                    shard = int(position) // self._per_shard
                    return CorruptTargetsError(
                        f"Cannot read shard {shard}, array {self._view}/{name}, sample {position} of {self._root}: "
                        f"{first_line(cause)} {remedy(self._root, shard)}"
                    )
        return CorruptTargetsError(f"Cannot read {self._root}: {first_line(error)}")


def encode_shard(metadata: bytes, key: str, first: int, array: npt.NDArray[np.generic]) -> bytes:
    """Encode one shard of an array in memory.

    Args:
        metadata: content of the array's `zarr.json`.
        key: the shard's file name below the array's folder.
        first: position of the first sample.
        array: [n, *tail], the whole shard.

    Returns:
        The bytes of the shard's file, the same for the same input.
    """
    _require_own_threads()
    context = ts.Context()
    store = ts.KvStore.open({"driver": "memory", "path": "array/"}, context=context).result()
    store["zarr.json"] = metadata
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "memory", "path": "array/"},
        "store_data_equal_to_fill_value": True,  # so that every shard has a file, whatever it holds
    }
    handle = ts.open(spec, context=context, open=True).result()
    handle[first : first + len(array)].write(array).result()
    encoded: bytes = store[key]
    return encoded


def new_context() -> Any:
    """A tensorstore context to share among the arrays of one store; None where tensorstore cannot be used."""
    if not _usable():
        return None
    return ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


def _open_array(folder: Path, layout: ArrayLayout, context: Any) -> ArrayReader:
    """Open one array for reading, with the fastest reader that this process can use."""
    if context is None:
        return _DirectArray(ShardFiles(folder, layout))
    _require_own_threads()
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"},
        "fill_missing_data_reads": False,
        "recheck_cached_data": False,  # committed shards never change
        "recheck_cached_metadata": False,
    }
    handle = ts.open(spec, context=context, open=True, read=True).result()
    if tuple(handle.shape[1:]) != layout.tail or handle.dtype.numpy_dtype != np.dtype(layout.dtype):
        raise ValueError(f"its array is {handle.dtype.name} {list(handle.shape)}, which is not what the spec says")
    return _TensorStoreArray(handle)


class _TensorStoreArray:
    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def start(self, positions: npt.NDArray[np.int64]) -> Callable[[], npt.NDArray[np.generic]]:
        if len(positions) == 1:
            first = int(positions[0])
            future = self._handle[first : first + 1].read()
        else:
            future = self._handle[positions].read()
        wait: Callable[[], npt.NDArray[np.generic]] = future.result
        return wait


class _DirectArray:
    def __init__(self, files: ShardFiles) -> None:
        self._files = files

    def start(self, positions: npt.NDArray[np.int64]) -> Callable[[], npt.NDArray[np.generic]]:
        return partial(self._files.read_many, positions)


def _usable() -> bool:
    return _first_user in (None, os.getpid())


def _require_own_threads() -> None:
    global _first_user
    if not _usable():
        raise RuntimeError(
            "tensorstore cannot write in a process forked after it was used; start the process with 'spawn'."
        )
    _first_user = os.getpid()


def _wait(wait: Callable[[], T]) -> T:
    return wait()


def first_line(error: Exception) -> str:
    """The first line of an error's message, as a sentence."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if text.endswith(".") else f"{text}."

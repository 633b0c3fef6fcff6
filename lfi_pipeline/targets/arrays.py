"""Zarr arrays through tensorstore: encode a shard to bytes, read samples at random.

Random reads of single samples are an order of magnitude faster here than through zarr-python. The price:
tensorstore runs threads, and aborts a process forked after its parent used it. `open_array` therefore falls
back to `ShardFiles` in such a process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from lfi_pipeline.targets.layout import ArrayLayout
from lfi_pipeline.targets.shardfile import ShardFiles

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


def open_array(folder: Path, layout: ArrayLayout, context: Any) -> ArrayReader:
    """Open one array for reading, with the fastest reader that this process can use.

    Args:
        folder: folder of the array.
        layout: of the array.
        context: from `new_context`, in this process.

    Raises:
        ValueError: the array's metadata cannot be read.
    """
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
    return _TensorStoreArray(ts.open(spec, context=context, open=True, read=True).result())


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

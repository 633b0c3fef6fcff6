"""Columns of the index: sequences over Arrow memory; a million strings are two buffers, not a million objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lfi_pipeline.targets.layout import tar_file

T = TypeVar("T")


class Column(Sequence[T], Generic[T]):
    """A read-only sequence; equal to any sequence of the same items. Slices are lists."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, length: int) -> None:
        self._length = length

    def _item(self, position: int) -> T:
        raise NotImplementedError

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self._item(i) for i in range(*at.indices(self._length))]
        position = int(at)
        if not -self._length <= position < self._length:
            raise IndexError(f"position must be in 0..{self._length - 1}, got {position}.")
        return self._item(position % self._length)

    def __iter__(self) -> Iterator[T]:
        return map(self._item, range(self._length))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))


class ValueColumn(Column[T]):
    """Strings (or nulls) of an Arrow array."""

    def __init__(self, values: pa.Array) -> None:
        super().__init__(len(values))
        self.arrow = values

    def _item(self, position: int) -> T:
        value: T = self.arrow[position].as_py()
        return value

    def __iter__(self) -> Iterator[T]:
        for first in range(0, len(self), 4096):  # far faster than one by one, and no list of everything
            yield from self.arrow.slice(first, 4096).to_pylist()


class TupleColumn(Column[tuple[int, ...]]):
    """Tuples of integers: `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
        offsets: int64 [S + 1].
        values: int32, of all samples one after another.
    """

    def __init__(self, values: pa.Array) -> None:
        """`values`: an Arrow list array without nulls."""
        super().__init__(len(values))
        self.offsets: npt.NDArray[np.int64] = np.asarray(values.offsets.to_numpy(), dtype=np.int64)
        self.values: npt.NDArray[np.int32] = values.values.to_numpy()

    def _item(self, position: int) -> tuple[int, ...]:
        return tuple(self.values[self.offsets[position] : self.offsets[position + 1]].tolist())


class TarPathColumn(Column[str]):
    """Paths `shards/000000.tar#OFFSET+SIZE`, made when asked for; "" where there is no member."""

    def __init__(self, places: npt.NDArray[np.int64], per_shard: int) -> None:
        """
        Args:
            places: int64 [S, 2], offset and size; -1 where there is none.
            per_shard: samples in one shard.
        """
        super().__init__(len(places))
        self._places, self._per_shard = places, per_shard

    def _item(self, position: int) -> str:
        offset, size = self._places[position].tolist()
        return "" if offset < 0 else f"{tar_file(position // self._per_shard)}#{offset}+{size}"


def joined(parts: list[pa.Array]) -> pa.Array:
    """One contiguous array of all parts; strings with wide offsets where 2 GiB of text would not do."""
    if pa.types.is_string(parts[0].type) and sum(part.nbytes for part in parts) > 2**30:
        parts = [part.cast(pa.large_string()) for part in parts]
    return pa.concat_arrays(parts)

"""Images inside Parquet files, addressed by column and row; a row group is read at a time."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lfi_pipeline.core.errors import ImageReadError

_IN_PARQUET = re.compile(r"^(.+\.parquet)#([A-Za-z0-9_. -]{1,64}):([0-9]{1,12})$", re.DOTALL)
_LARGEST_GROUP = 1 << 32  # bytes of images, unpacked


def split_parquet_path(path: str) -> tuple[str, str, int] | None:
    """Split `data/train.parquet#image:12` into file, column and row; None for the path of anything else."""
    found = _IN_PARQUET.match(path)
    return (found[1], found[2], int(found[3])) if found else None


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

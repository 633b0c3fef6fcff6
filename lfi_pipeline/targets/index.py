"""The index: one Parquet part a shard, read column by column when first asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lfi_pipeline.errors import CorruptTargetsError
from lfi_pipeline.targets.commits import remedy
from lfi_pipeline.targets.layout import index_file
from lfi_pipeline.targets.payload import ShardPayload
from lfi_pipeline.targets.plan import PlannedSample
from lfi_pipeline.targets.spec import TargetSpec

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("crc32c", pa.uint32()),
        ("labels", pa.list_(pa.int32())),
        ("domain", pa.string()),
        ("caption", pa.string()),
        ("quarantine", pa.string()),
    ]
)


def index_part(plan: Sequence[PlannedSample], payload: ShardPayload) -> bytes:
    """Content of one index part; size and crc32c are null for a quarantined sample."""
    reasons = [payload.quarantined.get(i) for i in range(len(plan))]
    good = [reason is None for reason in reasons]
    sizes = [None] * len(plan) if payload.image_size is None else payload.image_size.tolist()
    table = pa.table(
        {
            "key": [sample.key for sample in plan],
            "path": [sample.path for sample in plan],
            "size": [size if ok else None for size, ok in zip(sizes, good, strict=True)],
            "crc32c": [crc if ok else None for crc, ok in zip(payload.image_crc32c.tolist(), good, strict=True)],
            "labels": [list(sample.labels) for sample in plan],
            "domain": [sample.domain for sample in plan],
            "caption": [sample.caption for sample in plan],
            "quarantine": reasons,
        },
        schema=_SCHEMA,
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def read_part(root: Path, shard: int, columns: list[str] | None = None) -> dict[str, list[Any]]:
    """Read columns (all by default) of one index part; page checksums are verified.

    Raises:
        CorruptTargetsError: the part is missing or damaged.
    """
    path = root / index_file(shard)
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(columns=columns, use_threads=False)
        result: dict[str, list[Any]] = table.to_pydict()
    except (OSError, pa.ArrowException, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptTargetsError(f"Cannot read {path}: {first}. {remedy(root, shard)}") from error
    return result


class TargetIndex:
    """Columns of the index by position; each is read from disk when first asked for, then kept.

    In a cache opened incomplete, positions that are not committed hold "" or 0 or ().
    """

    def __init__(self, root: Path, spec: TargetSpec, shards: Sequence[int], quarantined: Sequence[int]) -> None:
        """
        Args:
            root: the cache.
            spec: of the cache.
            shards: numbers of the committed shards.
            quarantined: positions of quarantined samples.
        """
        self._root, self._spec, self._shards = root, spec, tuple(shards)
        self._quarantined = np.asarray(quarantined, dtype=np.int64)

    def __len__(self) -> int:
        return self._spec.dataset.samples

    @cached_property
    def keys(self) -> list[str]:
        """Key of each sample."""
        return self._column("key", "")

    @cached_property
    def paths(self) -> list[str]:
        """POSIX path of each image below the data root."""
        return self._column("path", "")

    @cached_property
    def labels(self) -> list[tuple[int, ...]]:
        """Indices into the spec's classes."""
        return [tuple(labels) for labels in self._column("labels", ())]

    @cached_property
    def domains(self) -> list[str]:
        """Visual domain of each sample, "" where there is none."""
        return self._column("domain", "")

    @cached_property
    def captions(self) -> list[str]:
        """The text that the words come from."""
        return self._column("caption", "")

    @cached_property
    def reasons(self) -> list[str | None]:
        """Why a sample is quarantined; None where it is not."""
        return self._column("quarantine", None)

    @cached_property
    def image_crc32c(self) -> npt.NDArray[np.uint32]:
        """uint32 [S], crc32c of the image files; 0 where quarantined."""
        return np.asarray([crc or 0 for crc in self._column("crc32c", 0)], dtype=np.uint32)

    @cached_property
    def image_sizes(self) -> npt.NDArray[np.int64]:
        """int64 [S], bytes of the image files; 0 where quarantined, or not known."""
        return np.asarray([size or 0 for size in self._column("size", 0)], dtype=np.int64)

    @cached_property
    def quarantined(self) -> npt.NDArray[np.bool_]:
        """bool [S], True where a sample has no targets because its image could not be used."""
        mask = np.zeros(len(self), dtype=bool)
        mask[self._quarantined] = True
        return mask

    @cached_property
    def committed(self) -> npt.NDArray[np.bool_]:
        """bool [S], True where the sample's shard is committed."""
        mask = np.zeros(len(self), dtype=bool)
        for shard in self._shards:
            positions = self._spec.shard_range(shard)
            mask[positions.start : positions.stop] = True
        return mask

    def _column(self, name: str, default: Any) -> list[Any]:
        column: list[Any] = [default] * len(self)
        for shard in self._shards:
            positions = self._spec.shard_range(shard)
            values = read_part(self._root, shard, [name])[name]
            if len(values) != len(positions):
                raise CorruptTargetsError(
                    f"{self._root / index_file(shard)} holds {len(values)} rows, not {len(positions)}. "
                    f"{remedy(self._root, shard)}"
                )
            column[positions.start : positions.stop] = values
        return column

"""Write the targets of one cache again in the other layout, shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.targets.commits import Summary
from lfi_pipeline.targets.encode import StoredShard
from lfi_pipeline.targets.manifest import read_source
from lfi_pipeline.targets.store import SampleTargets, TargetStore, checked_image, image_present
from lfi_pipeline.targets.vocabulary import PlannedSample, plan_digests
from lfi_pipeline.targets.writer import TargetWriter

THREADS = 8
"""Threads that read images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Result of `pack`.

    Attributes:
        summary: of the new cache.
        data_root: where the new cache looks for its images; itself in the webdataset layout.
        images_missing: samples of the shards written by this call whose image is not below `data_root`.
    """

    summary: Summary
    data_root: Path
    images_missing: int


def pack(
    source: str | Path,
    out: str | Path,
    *,
    layout: str,
    data_root: str | Path | None = None,
    progress: bool = False,
) -> Packed:
    """Write `out`, or go on with it where it was left; the targets and the fingerprint are those of `source`.

    The same source gives the same bytes as if it had been extracted in that layout. Everything that is read is
    checked; several processes may pack into the same directory. To webdataset, images go into the tars; to zarr, they
    stay where the source says that the data set lies.

    Args:
        source: a complete cache.
        out: directory of the new cache.
        layout: of the new cache, one of `LAYOUTS`.
        data_root: where the data set lies, if not where the source recorded.
        progress: show a bar with the time left on stderr.

    Raises:
        CorruptTargetsError: the source is damaged, or an image is missing or another than the teacher saw; names it.
        IncompleteTargetsError: shards of the source are missing.
        SpecMismatchError: `out` holds other targets, or has another layout.
        ConfigError: `out` is the source.
        LFIError: as `TargetWriter.open` and `TargetWriter.commit`.
    """
    store = TargetStore.open(source, data_root=data_root)
    if Path(out).expanduser().resolve() == store.path.resolve():
        raise ConfigError(f"The new cache must be another directory than its source, got {store.path} for both.")
    plan = _IndexPlan(store)
    if plan_digests(plan) != dict(store.manifest.plan):
        raise CorruptTargetsError(f"The index of {store.path} does not list the samples that its manifest is of.")
    writer = TargetWriter.open(
        out,
        store.spec,
        plan,
        store.vocabulary,
        store.source_root,
        layout=layout,
        source_manifest=read_source(store.path).manifest,
        zero_shot=store.zero_shot,
    )
    pending = writer.pending_shards()
    missing = 0
    total = sum(len(writer.shard_range(shard)) for shard in pending)
    with progress_bar(total=total, desc=f"pack to {layout}", unit="sample", disable=not progress) as bar:
        for shard in pending:
            with writer.claim(shard) as ours:
                if ours:
                    writer.commit(shard, _stored(store, shard, with_images=layout == "webdataset"))
                    missing += _missing_images(store, shard) if layout == "zarr" else 0
            bar.update(len(writer.shard_range(shard)))
    writer.finish()
    data_root = store.source_root if layout == "zarr" else Path(out).expanduser().absolute()
    return Packed(summary=writer.summary(), data_root=data_root, images_missing=missing)


class _IndexPlan(Sequence[PlannedSample]):
    """The plan that a cache was made from, read off its index a sample at a time."""

    def __init__(self, store: TargetStore) -> None:
        self._index = store.index

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, at: int) -> PlannedSample: ...
    @overload
    def __getitem__(self, at: slice) -> list[PlannedSample]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[position] for position in range(*at.indices(len(self)))]
        index = self._index
        return PlannedSample(
            key=index.keys[at],
            path=index.source_paths[at],
            labels=index.labels[at],
            domain=index.domains[at],
            caption=index.captions[at],
        )


def _stored(store: TargetStore, shard: int, with_images: bool) -> StoredShard:
    """A shard as the source holds it."""
    positions, record, index = store.spec.shard_range(shard), store.records[shard], store.index
    rows = slice(positions.start, positions.stop)
    sizes = index.image_size[rows]
    views = {}
    for view in store.spec.views:
        targets = store.read_many(positions, view)
        views[view] = {field.name: getattr(targets, field.name) for field in fields(SampleTargets)}
    return StoredShard(
        views=views,
        image_crc32c=index.image_crc32c[rows],
        image_size=sizes if (sizes >= 0).any() else None,
        quarantined={position - positions.start: reason for position, reason in record.quarantined.items()},
        images=_images(store, shard) if with_images else None,
        kl_sum=record.kl_sum,
        kl_rows=record.kl_rows,
    )


def _images(store: TargetStore, shard: int) -> list[bytes | None]:
    index, quarantined = store.index, store.records[shard].quarantined

    def read(position: int) -> bytes | None:
        if position in quarantined:
            return None
        checksum = int(index.image_crc32c[position])
        return checked_image(store.data_root, index.paths[position], checksum, index.keys[position])

    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        return list(pool.map(read, store.spec.shard_range(shard)))


def _missing_images(store: TargetStore, shard: int) -> int:
    paths, quarantined = store.index.source_paths, store.records[shard].quarantined
    return sum(
        not image_present(store.source_root, paths[position])
        for position in store.spec.shard_range(shard)
        if position not in quarantined
    )

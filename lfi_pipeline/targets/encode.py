"""One shard's payload to the bytes of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lfi_pipeline.targets.arrays import encode_shard
from lfi_pipeline.targets.codec import decode_maps, encode_maps, kl_total
from lfi_pipeline.targets.commits import CommitRecord
from lfi_pipeline.targets.files import FileRecord
from lfi_pipeline.targets.index import index_part
from lfi_pipeline.targets.layout import array_folder, array_layouts, index_file, shard_key
from lfi_pipeline.targets.payload import ShardPayload, ViewArrays
from lfi_pipeline.targets.plan import PlannedSample
from lfi_pipeline.targets.spec import TargetSpec

BLOCK = 64
"""Samples quantised at a time; bounds the memory of the float64 intermediates."""


def encode_payload(
    spec: TargetSpec,
    shard: int,
    plan: Sequence[PlannedSample],
    payload: ShardPayload,
    metadata: Mapping[str, bytes],
) -> tuple[dict[str, bytes], CommitRecord]:
    """Encode one shard; the same payload gives the same bytes on every run.

    Args:
        spec: of the cache.
        shard: number of the shard.
        plan: the shard's samples, in order.
        payload: checked against the spec.
        metadata: content of each array's `zarr.json`, by path relative to the cache.

    Returns:
        Content of every file of the shard by path relative to the cache, and the commit record over them.

    Raises:
        ConfigError: maps that are not distributions.
    """
    positions = spec.shard_range(shard)
    absent = np.zeros(len(positions), dtype=bool)
    absent[list(payload.quarantined)] = True
    files: dict[str, bytes] = {}
    kl_sum, kl_rows = 0.0, 0
    layouts = array_layouts(spec)
    for v, view in enumerate(spec.views):
        donated = None if payload.donated is None else payload.donated[v]
        stored, view_sum, view_rows, view_donated = _stored_arrays(spec, payload.views[view], absent, donated)
        kl_sum += view_sum + view_donated * payload.donated_kl
        kl_rows += view_rows + view_donated
        for name, layout in layouts.items():
            folder, key = array_folder(view, name), shard_key(layout, shard)
            data = encode_shard(metadata[f"{folder}/zarr.json"], key, positions.start, stored[name])
            files[f"{folder}/{key}"] = data
    files[index_file(shard)] = index_part(plan, payload)
    record = CommitRecord(
        shard=shard,
        samples=len(positions),
        quarantined={positions[i]: reason for i, reason in payload.quarantined.items()},
        files={name: FileRecord.of(data) for name, data in files.items()},
        kl_sum=kl_sum,
        kl_rows=kl_rows,
    )
    return files, record


def _stored_arrays(
    spec: TargetSpec, view: ViewArrays, absent: npt.NDArray[np.bool_], donated: npt.NDArray[np.bool_] | None
) -> tuple[dict[str, npt.NDArray[np.generic]], float, int, int]:
    """Arrays of one view as stored, the sum of KL over new present rows, their number, and that of donated ones."""
    samples = len(absent)
    words = np.where(absent[:, None], np.int32(-1), view.words).astype(np.int32)  # [n, M]
    codes = np.zeros(view.maps.shape, dtype=np.uint8)
    scale = np.zeros(view.maps.shape[:3], dtype=np.float16)
    kl_sum, kl_rows, kl_donated = 0.0, 0, 0
    for first in range(0, samples, BLOCK):
        block = slice(first, first + BLOCK)
        pad = (words[block] < 0)[:, None, :, None, None]  # [b, 1, M, 1, 1]
        maps = np.where(pad, np.float32(0), view.maps[block]).astype(np.float32)
        codes[block], scale[block] = encode_maps(maps, spec.codec.name)
        decoded = decode_maps(codes[block], scale[block], spec.codec.name)
        if donated is not None:
            given = donated[block][..., None] & (scale[block] > 0)  # [b, L, M]
            kl_donated += int(given.sum())
            maps = np.where(given[..., None, None], np.float32(0), maps)
        block_sum, block_rows = kl_total(maps, decoded)
        kl_sum, kl_rows = kl_sum + block_sum, kl_rows + block_rows
    kept = np.ones(scale.shape, dtype=np.float16) if view.kept is None else view.kept.astype(np.float16)
    embedding = np.where(absent[:, None], 0, view.image_embedding).astype(np.float16)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "maps": codes,
        "scale": scale,
        "words": words,
        "kept": np.where(scale > 0, kept, np.float16(0)),
        "image_embedding": embedding,
    }
    return arrays, kl_sum, kl_rows, kl_donated

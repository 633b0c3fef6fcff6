"""Encode one shard: check its payload against the spec, quantise the maps, and make the bytes of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.io import FileRecord, crc32c_hex
from lfi_pipeline.targets.codec import decode_maps, encode_maps, kl_total
from lfi_pipeline.targets.commits import CommitRecord, array_folder, array_layouts, index_file, shard_key, tar_file
from lfi_pipeline.targets.index import index_part
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.tar import (
    END,
    ViewCodec,
    header,
    image_extension,
    member_kinds,
    member_names,
    padding,
    sample_json,
    view_kind,
)
from lfi_pipeline.targets.vocabulary import PlannedSample
from lfi_pipeline.targets.zarr import encode_shard


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ViewArrays:
    """One view of the n samples of a shard.

    Attributes:
        maps: float32 [n, L, M, gh, gw]; rows sum to 1, or are all zero where there is no map.
        words: int32 [n, M], ids into the vocabulary; -1 pads (the rows of a pad are stored as zero).
        image_embedding: float32 [n, E], the teacher's embedding of the view.
        kept: float32 [n, L, M], share of the attention mass kept before renormalising, in [0, 1]: a quality
            signal. None where nothing is dropped: stored as 1 for every present row.
    """

    maps: npt.NDArray[np.float32]
    words: npt.NDArray[np.int32]
    image_embedding: npt.NDArray[np.float32]
    kept: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShardPayload:
    """Everything of one shard.

    Attributes:
        views: arrays by view name, exactly the views of the spec.
        image_crc32c: uint32 [n], of the image files' bytes.
        quarantined: reason by position in the shard; whatever the arrays hold there is stored as absent.
        image_size: int64 [n], bytes of the image files, where known.
        donated: bool [V, n, L], rows that come out of another cache; encoding them again changes nothing, so their
            loss is not measured but taken to be `donated_kl`. None where there are none.
        donated_kl: mean KL(map || decoded) of those rows in nats.
        images: the image files' bytes, None where quarantined; the webdataset layout needs them.
    """

    views: Mapping[str, ViewArrays]
    image_crc32c: npt.NDArray[np.uint32]
    quarantined: Mapping[int, str] = field(default_factory=dict)
    image_size: npt.NDArray[np.int64] | None = None
    donated: npt.NDArray[np.bool_] | None = None
    donated_kl: float = 0.0
    images: Sequence[bytes | None] | None = None


def check_payload(spec: TargetSpec, vocabulary_size: int, samples: int, payload: ShardPayload) -> None:
    """Check shapes, word ids and names; the values of maps are checked by the codec.

    Args:
        spec: of the cache.
        vocabulary_size: V.
        samples: n, samples of the shard.
        payload: to check.

    Raises:
        ConfigError: something does not fit; says what must hold and what was given.
    """
    if set(payload.views) != set(spec.views):
        raise ConfigError(f"payload.views must be {sorted(spec.views)}, got {sorted(payload.views)}.")
    _shape("image_crc32c", payload.image_crc32c, samples)
    if payload.image_size is not None:
        _shape("image_size", payload.image_size, samples)
    if payload.donated is not None:
        _shape("donated", payload.donated, len(spec.views), samples, len(spec.layers))
    for position in payload.quarantined:
        if not 0 <= position < samples:
            raise ConfigError(f"quarantined positions must be in 0..{samples - 1}, got {position}.")
    layers, words = len(spec.layers), spec.words_per_sample
    for view, arrays in payload.views.items():
        _shape(f"views[{view!r}].maps", arrays.maps, samples, layers, words, *spec.grid)
        _shape(f"views[{view!r}].words", arrays.words, samples, words)
        _shape(f"views[{view!r}].image_embedding", arrays.image_embedding, samples, spec.embedding_dim)
        if arrays.kept is not None:
            _shape(f"views[{view!r}].kept", arrays.kept, samples, layers, words)
        good = np.ones(samples, dtype=bool)
        good[list(payload.quarantined)] = False
        ids = arrays.words[good]
        if ids.size and (ids.min() < -1 or ids.max() >= vocabulary_size):
            raise ConfigError(
                f"views[{view!r}].words must be in -1..{vocabulary_size - 1}, got {ids.min()}..{ids.max()}."
            )
        values = [arrays.image_embedding[good]] + ([] if arrays.kept is None else [arrays.kept[good]])
        if not all(np.isfinite(value).all() for value in values):
            raise ConfigError(f"views[{view!r}] must have finite image_embedding and kept, got NaN or infinity.")


def _shape(name: str, array: npt.NDArray[np.generic], *shape: int) -> None:
    if array.shape != shape:
        raise ConfigError(f"{name} must be {list(shape)}, got {list(array.shape)}.")


BLOCK = 64
"""Samples quantised at a time; bounds the memory of the float64 intermediates."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredShard:
    """One shard as it is stored, in either layout.

    Attributes:
        views: per view the arrays of `array_layouts` [n, *tail], by name.
        image_crc32c, image_size, quarantined, images: as of `ShardPayload`.
        kl_sum: KL(map || decoded) in nats, summed over present rows.
        kl_rows: number of those rows.
    """

    views: Mapping[str, Mapping[str, npt.NDArray[np.generic]]]
    image_crc32c: npt.NDArray[np.uint32]
    image_size: npt.NDArray[np.int64] | None
    quarantined: Mapping[int, str]
    images: Sequence[bytes | None] | None
    kl_sum: float
    kl_rows: int


def store_payload(spec: TargetSpec, payload: ShardPayload) -> StoredShard:
    """Quantise a payload that was checked against the spec.

    Raises:
        ConfigError: maps that are not distributions.
    """
    absent = np.zeros(len(payload.image_crc32c), dtype=bool)
    absent[list(payload.quarantined)] = True
    views, kl_sum, kl_rows = {}, 0.0, 0
    for v, view in enumerate(spec.views):
        donated = None if payload.donated is None else payload.donated[v]
        views[view], view_sum, view_rows, view_donated = _stored_arrays(spec, payload.views[view], absent, donated)
        kl_sum += view_sum + view_donated * payload.donated_kl
        kl_rows += view_rows + view_donated
    return StoredShard(
        views=views,
        image_crc32c=payload.image_crc32c,
        image_size=payload.image_size,
        quarantined=payload.quarantined,
        images=payload.images,
        kl_sum=kl_sum,
        kl_rows=kl_rows,
    )


def encode_stored(
    spec: TargetSpec,
    layout: str,
    shard: int,
    plan: Sequence[PlannedSample],
    stored: StoredShard,
    metadata: Mapping[str, bytes],
    words: Sequence[str],
) -> tuple[dict[str, bytes], CommitRecord]:
    """Encode one shard; the same content gives the same bytes on every run.

    Args:
        spec: of the cache.
        layout: of the cache.
        shard: number of the shard.
        plan: the shard's samples, in order.
        stored: what to write.
        metadata: content of each array's `zarr.json`, by path relative to the cache (layout zarr).
        words: the vocabulary's (layout webdataset).

    Returns:
        Content of every file of the shard by path relative to the cache, and the commit record over them.

    Raises:
        ConfigError: images that the layout needs are missing, or are not those that the checksums are of.
    """
    positions = spec.shard_range(shard)
    files: dict[str, bytes] = {}
    members: dict[str, npt.NDArray[np.int64]] = {}
    if layout == "zarr":
        for view in spec.views:
            for name, array in array_layouts(spec).items():
                folder, key = array_folder(view, name), shard_key(array, shard)
                data = encode_shard(metadata[f"{folder}/zarr.json"], key, positions.start, stored.views[view][name])
                files[f"{folder}/{key}"] = data
    else:
        files[tar_file(shard)], members = _tar(spec, positions, plan, stored, words)
    files[index_file(shard)] = index_part(plan, stored.quarantined, stored.image_crc32c, stored.image_size, members)
    record = CommitRecord(
        shard=shard,
        samples=len(positions),
        quarantined={positions[i]: reason for i, reason in stored.quarantined.items()},
        files={name: FileRecord.of(data) for name, data in files.items()},
        kl_sum=stored.kl_sum,
        kl_rows=stored.kl_rows,
    )
    return files, record


def _tar(
    spec: TargetSpec, positions: range, plan: Sequence[PlannedSample], stored: StoredShard, words: Sequence[str]
) -> tuple[bytes, dict[str, npt.NDArray[np.int64]]]:
    """The tar of a shard, and per kind of member offset and size, int64 [n, 2], -1 where absent."""
    images = _require_images(plan, stored)
    codec = ViewCodec(spec)
    common = {
        "codec": spec.codec.name,
        "arrays": [[name, kind.str, list(shape)] for name, kind, shape in codec.fields],
        "fingerprint": spec.fingerprint,
    }
    members = {kind: np.full((len(plan), 2), -1, dtype=np.int64) for kind in member_kinds(spec)}
    archive = bytearray()
    for row, (position, sample, image) in enumerate(zip(positions, plan, images, strict=True)):
        contents: dict[str, bytes] = {"json": b""}
        if image is not None:
            contents = {"image": image, "json": b""}
            for view, arrays in stored.views.items():
                contents[view_kind(view)] = codec.encode({name: array[row] for name, array in arrays.items()})
        extension = None if image is None else image_extension(sample.path, image)
        names = dict(zip(contents, member_names(spec, position, extension), strict=True))
        checksums = {
            names[kind].partition(".")[2]: crc32c_hex(content) for kind, content in contents.items() if kind != "json"
        }
        body = _body(spec.dataset.classes, sample, stored, row, words)
        contents["json"] = sample_json(body | common | {"crc32c": checksums})
        for kind, content in contents.items():
            archive += header(names[kind], len(content))
            if kind in members:
                members[kind][row] = len(archive), len(content)
            archive += content
            archive += bytes(padding(len(content)))
    archive += END
    return bytes(archive), members


def _require_images(plan: Sequence[PlannedSample], stored: StoredShard) -> list[bytes | None]:
    """The images of a shard, None exactly where quarantined."""
    if stored.images is None or len(stored.images) != len(plan):
        raise ConfigError("The webdataset layout holds the images: payload.images must have one entry a sample.")
    images: list[bytes | None] = []
    for row, (sample, image) in enumerate(zip(plan, stored.images, strict=True)):
        if row in stored.quarantined:
            images.append(None)
        elif image is None or google_crc32c.value(image) != int(stored.image_crc32c[row]):
            received = "none" if image is None else f"one with crc32c {crc32c_hex(image)}"
            raise ConfigError(
                f"payload.images must hold the image of {sample.key} with crc32c {stored.image_crc32c[row]:08x}, "
                f"got {received}."
            )
        else:
            images.append(image)
    return images


def _body(
    classes: Sequence[str], sample: PlannedSample, stored: StoredShard, row: int, words: Sequence[str]
) -> dict[str, Any]:
    """What a sample's JSON says of the sample itself."""
    ids = {view: arrays["words"][row].tolist() for view, arrays in stored.views.items()}
    return {
        "key": sample.key,
        "path": sample.path,
        "labels": list(sample.labels),
        "classes": [classes[label] if 0 <= label < len(classes) else None for label in sample.labels],
        "domain": sample.domain,
        "caption": sample.caption,
        "quarantine": stored.quarantined.get(row),
        "words": {view: {"ids": own, "text": [words[i] if i >= 0 else None for i in own]} for view, own in ids.items()},
    }


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
            donated_rows = donated[block][..., None] & (scale[block] > 0)  # [b, L, M]
            kl_donated += int(donated_rows.sum())
            maps = np.where(donated_rows[..., None, None], np.float32(0), maps)
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

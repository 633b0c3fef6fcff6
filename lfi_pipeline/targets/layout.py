"""Where things lie in a cache, and the shape, type and chunking of every array.

manifest.json                      spec, fingerprint, digests; written first, never changed
source.json                        the data root; not part of the fingerprint
vocabulary.json, vocabulary.npy    words, float16 [V, E]
classes.json, classes.npy          the teacher's zero-shot classifier (see `zero_shot`), float16 [C, E]; not without
                                   classes, nor in caches of an earlier release
zarr.json, views/**/zarr.json      Zarr v3 metadata: any Zarr reader opens the directory as a group  (layout zarr)
views/<view>/<array>/c.<shard>...  one shard of one array                        (layout zarr)
shards/<shard>.tar                 images, texts and arrays of a shard's samples  (layout webdataset; see `tarshard`)
index/<shard>.parquet              key, path, checksum, labels, ... of the shard's samples
commits/<shard>.json               the commit record: its presence makes the shard true
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lfi_pipeline.targets.spec import TargetSpec

MANIFEST = "manifest.json"
SOURCE = "source.json"
VOCABULARY = ("vocabulary.json", "vocabulary.npy")
CLASSES = ("classes.json", "classes.npy")
LAYOUTS = ("zarr", "webdataset")
"""zarr: arrays of all samples, images where they are. webdataset: tar shards that hold the images too."""
SMALL_CHUNK = 32
"""Samples in one inner chunk of the small arrays, where the shard size allows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayLayout:
    """One array of one view.

    Attributes:
        name: its name below the view.
        dtype: numpy name of its type.
        tail: shape of one sample.
        inner: samples in one inner chunk, the unit of reading; divides `shard`.
        shard: samples in one shard, the unit of writing.
        fill: value of what is not there.
    """

    name: str
    dtype: str
    tail: tuple[int, ...]
    inner: int
    shard: int
    fill: int


def array_layouts(spec: TargetSpec) -> dict[str, ArrayLayout]:
    """The arrays of every view, by name."""
    layers, words, shard = len(spec.layers), spec.words_per_sample, spec.samples_per_shard
    small = math.gcd(SMALL_CHUNK, shard)

    def array(name: str, dtype: str, *tail: int, inner: int, fill: int = 0) -> ArrayLayout:
        return ArrayLayout(name=name, dtype=dtype, tail=tail, inner=inner, shard=shard, fill=fill)

    arrays = (
        array("maps", "uint8", layers, words, *spec.grid, inner=1),
        array("scale", "float16", layers, words, inner=small),
        array("words", "int32", words, inner=small, fill=-1),
        array("kept", "float16", layers, words, inner=small),
        array("image_embedding", "float16", spec.embedding_dim, inner=1),
    )
    return {layout.name: layout for layout in arrays}


def array_folder(view: str, array: str) -> str:
    """Folder of one array, relative to the cache."""
    return f"views/{view}/{array}"


def shard_key(layout: ArrayLayout, shard: int) -> str:
    """Name of a shard's file below its array's folder."""
    return ".".join(["c", str(shard), *("0" for _ in layout.tail)])


def index_file(shard: int) -> str:
    """The index part of a shard, relative to the cache."""
    return f"index/{shard:06d}.parquet"


def commit_file(shard: int) -> str:
    """The commit record of a shard, relative to the cache."""
    return f"commits/{shard:06d}.json"


def tar_file(shard: int) -> str:
    """The tar of a shard in the webdataset layout, relative to the cache."""
    return f"shards/{shard:06d}.tar"


def zarr_files(spec: TargetSpec, shard: int) -> dict[str, ArrayLayout]:
    """The array files of a shard in the zarr layout, by path relative to the cache."""
    return {
        f"{array_folder(view, array.name)}/{shard_key(array, shard)}": array
        for view in spec.views
        for array in array_layouts(spec).values()
    }


def shard_files(spec: TargetSpec, layout: str, shard: int) -> set[str]:
    """Every file that a shard's commit record lists, relative to the cache."""
    data = set(zarr_files(spec, shard)) if layout == "zarr" else {tar_file(shard)}
    return {*data, index_file(shard)}


def fixed_files(spec: TargetSpec, layout: str) -> set[str]:
    """Every file that the manifest lists, relative to the cache; beside them it may list `CLASSES`."""
    if layout != "zarr":
        return set(VOCABULARY)
    folders = ["", "views/", *(f"views/{view}/" for view in spec.views)]
    folders += [f"{array_folder(view, array)}/" for view in spec.views for array in array_layouts(spec)]
    return {*VOCABULARY, *(f"{folder}zarr.json" for folder in folders)}


def zarr_metadata(spec: TargetSpec) -> dict[str, bytes]:
    """Content of every `zarr.json`, by path relative to the cache, as zarr-python writes it."""
    import zarr  # slow to import, and readers do not need it
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.core.buffer import Buffer
    from zarr.storage import MemoryStore

    files = {}
    for group in ("", "views/", *(f"views/{view}/" for view in spec.views)):
        kept: dict[str, Buffer] = {}
        zarr.create_group(MemoryStore(kept))
        files[f"{group}zarr.json"] = kept["zarr.json"].to_bytes()
    for layout in array_layouts(spec).values():
        kept = {}
        zarr.create_array(
            MemoryStore(kept),
            shape=(spec.dataset.samples, *layout.tail),
            dtype=layout.dtype,
            chunks=(layout.inner, *layout.tail),
            shards=(layout.shard, *layout.tail),
            compressors=[ZstdCodec(level=spec.codec.level, checksum=False), Crc32cCodec()],
            fill_value=layout.fill,
            chunk_key_encoding={"name": "default", "separator": "."},
        )
        for view in spec.views:
            files[f"{array_folder(view, layout.name)}/zarr.json"] = kept["zarr.json"].to_bytes()
    return files

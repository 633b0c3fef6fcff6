"""Read a cache at random, in storage form; `codec.decode_maps` turns it into maps where they are needed.

Positioned reads and no threads, so that forked and spawned workers can read alike.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from PIL import Image

from lfi_pipeline.core.errors import CorruptTargetsError, ImageReadError, IncompleteTargetsError, UnknownNameError
from lfi_pipeline.core.io import read_whole, why_unsafe
from lfi_pipeline.data.images import decode_image, file_of, read_bytes
from lfi_pipeline.data.manifest import Manifest as DataManifest
from lfi_pipeline.data.manifest import parse_manifest
from lfi_pipeline.targets.commits import (
    CLASSES,
    VOCABULARY,
    CommitRecord,
    Summary,
    array_layouts,
    committed_shards,
    remedy,
    summarise,
    tar_file,
)
from lfi_pipeline.targets.index import TargetIndex
from lfi_pipeline.targets.manifest import Manifest, read_source
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.tar import ViewCodec, view_kind
from lfi_pipeline.targets.vocabulary import Vocabulary, ZeroShot
from lfi_pipeline.targets.zarr import Arrays, ViewReader, ZarrView, first_line, new_context


def sample_image(store: TargetStore, position: int) -> Image.Image:
    """Return the image of a sample as RGB; raises as `checked_image`, and ImageReadError where it cannot be decoded."""
    path, recorded = store.index.paths[position], int(store.index.image_crc32c[position])
    return decode_image(checked_image(store.data_root, path, recorded, store.index.keys[position]), path)


def image_present(root: Path, path: str) -> bool:
    """Whether there is a file that the image would be read from; its content is not looked at."""
    return why_unsafe(path) is None and (root / file_of(path)).is_file()


def checked_image(data_root: Path, path: str, crc32c: int, key: str) -> bytes:
    """The bytes of the image of a sample, as they were when the teacher saw it.

    Args:
        data_root: where it lies.
        path: of it below `data_root`, as `TargetIndex.paths` gives it.
        crc32c: recorded of its bytes.
        key: of the sample, for messages.

    Raises:
        CorruptTargetsError: it is missing, or is another; names it.
    """
    where = f"Image {path} (sample {key}) below {data_root}"
    try:
        content = read_bytes(data_root, path)
    except ImageReadError as error:
        text = str(error).removesuffix(".")
        raise CorruptTargetsError(f"{where} cannot be read: {text}. Restore it, or say where images lie.") from error
    actual = int(google_crc32c.value(content))
    if actual != crc32c:
        raise CorruptTargetsError(
            f"{where} is not the image that the teacher saw: its crc32c is {actual:08x}, the cache recorded "
            f"{crc32c:08x}. Restore the image, or extract targets anew."
        )
    return content


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

    def read(self, positions: npt.NDArray[np.int64], names: Collection[str] | None = None) -> Arrays:
        """The view's arrays by name, each stacked [B, *tail]; of `names` alone where they are given.

        Raises:
            CorruptTargetsError: stored bytes are missing or do not match their checksum; names shard and sample.
        """
        result: Arrays = {
            name: np.full((len(positions), *array.tail), array.fill, dtype=array.dtype)
            for name, array in self._layouts.items()
            if names is None or name in names
        }
        for row, position in enumerate(positions.tolist()):
            for name, array in self._sample(position).items():
                if name in result:
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleTargets:
    """Stored targets of one sample, or of B samples stacked along a first axis.

    Attributes:
        maps: uint8 [L, M, gh, gw], codes of the spec's codec.
        scale: float16 [L, M]; 0 marks an absent row.
        words: int32 [M], ids into the vocabulary; -1 pads.
        kept: float16 [L, M], share of the attention mass kept, in [0, 1]; 0 for an absent row.
        image_embedding: float16 [E].
    """

    maps: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float16]
    words: npt.NDArray[np.int32]
    kept: npt.NDArray[np.float16]
    image_embedding: npt.NDArray[np.float16]


@dataclass(slots=True)
class _Handles:
    """Open views, and the process that opened them."""

    process: int
    context: Any
    views: dict[str, ViewReader] = field(default_factory=dict)


class TargetStore:
    """A committed cache. Cheap to send to worker processes, forked or spawned: each opens its own handles."""

    def __init__(self, root: Path, data_root: Path | None, require_complete: bool) -> None:
        """Use `open`."""
        self._root, self._data_root, self._require_complete = root, data_root, require_complete
        self._manifest = Manifest.load(root)
        self._spec = self._manifest.spec
        shards = committed_shards(root, self._spec)
        if require_complete and len(shards) < self._spec.shards:
            raise IncompleteTargetsError(
                f"{root} has {len(shards)} of {self._spec.shards} shards. Run the same extract command again "
                "to finish it."
            )
        self._records = {shard: CommitRecord.load(root, self._spec, self.layout, shard) for shard in shards}
        self._handles: _Handles | None = None

    @classmethod
    def open(
        cls, path: str | Path, *, data_root: str | Path | None = None, require_complete: bool = True
    ) -> TargetStore:
        """Open a cache for reading.

        Args:
            path: the cache's directory, or its URL (`s3://bucket/shards` and the like, whatever fsspec lists): its files
                are then copied to the cache folder first, and not again while they stay the same.
            data_root: where the data set lies, if not where the writer recorded.
            require_complete: refuse a cache in which shards are missing.

        Raises:
            TargetsError: not a cache, or one of an unknown version.
            IncompleteTargetsError: shards are missing.
            CorruptTargetsError: manifest or commit records do not match their checksums.
        """
        from lfi_pipeline.core.hub import OF_A_CACHE, mirrored, url_of

        override = None if data_root is None else Path(data_root).expanduser().absolute()
        if (url := url_of(path)) is not None:
            path = mirrored(url, OF_A_CACHE)
        return cls(Path(path).expanduser().absolute(), override, require_complete)

    def __len__(self) -> int:
        """Number of samples, quarantined ones included."""
        return self._spec.dataset.samples

    @property
    def path(self) -> Path:
        """The cache's directory."""
        return self._root

    @property
    def spec(self) -> TargetSpec:
        """The frozen description of the targets."""
        return self._spec

    @property
    def layout(self) -> str:
        """How shards are stored, one of `commits.LAYOUTS`."""
        return self._manifest.layout

    @property
    def manifest(self) -> Manifest:
        """The cache's manifest: spec, layout, plan digests and fixed files."""
        return self._manifest

    @property
    def records(self) -> Mapping[int, CommitRecord]:
        """Commit records by number of the shard, ascending."""
        return self._records

    @cached_property
    def data_root(self) -> Path:
        """Where `index.paths` lie: the data set's root, or the cache itself where its tars hold the images.

        Raises:
            CorruptTargetsError: the recorded place cannot be read.
        """
        return self.source_root if self.layout == "zarr" else self._root

    @cached_property
    def source_root(self) -> Path:
        """Where the data set lies that the targets were extracted from; raises as `data_root` does."""
        if self._data_root is not None:
            return self._data_root
        return read_source(self._root).data_root

    @cached_property
    def source(self) -> str | DataManifest:
        """What `read_dataset` takes, beside `source_root`, to read the data set again: its name, or its own manifest.

        Raises:
            CorruptTargetsError: where the data set came from cannot be read.
            DatasetError: the manifest is none.
        """
        text = read_source(self._root).manifest
        return parse_manifest(text.encode(), f"The manifest in {self._root}") if text else self._spec.dataset.name

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Words, and their text embeddings as float32 [V, E].

        Raises:
            CorruptTargetsError: a file of it does not match the manifest.
        """
        self._require_intact(VOCABULARY)
        return Vocabulary.load(self._root, self._spec.embedding_dim)

    @cached_property
    def zero_shot(self) -> ZeroShot | None:
        """The teacher's zero-shot classifier; None without classes, and in a cache of an earlier release.

        Raises:
            CorruptTargetsError: a file of it does not match the manifest.
        """
        if not self._manifest.has_classes:
            return None
        self._require_intact(CLASSES)
        return ZeroShot.load(self._root, self._spec.dataset.classes, self._spec.embedding_dim)

    @cached_property
    def index(self) -> TargetIndex:
        """Keys, paths, labels, ... by position; columns are read when first asked for."""
        return TargetIndex(self._root, self._spec, self.layout, self._records)

    @cached_property
    def usable(self) -> npt.NDArray[np.int64]:
        """Positions that are committed and not quarantined, ascending."""
        positions_by_shard = [np.zeros(0, dtype=np.int64)]
        for shard, record in self._records.items():
            positions = self._spec.shard_range(shard)
            positions_by_shard.append(
                np.setdiff1d(np.arange(positions.start, positions.stop), list(record.quarantined))
            )
        return np.concatenate(positions_by_shard)

    def summary(self) -> Summary:
        """Sizes, counts and codec loss of what is committed."""
        return summarise(self._spec, self._records.values())

    def read(self, position: int, view: str = "full") -> SampleTargets:
        """Read one sample. A quarantined one has no words and all-zero rows.

        Raises:
            IndexError: no such position.
            UnknownNameError: no such view.
            IncompleteTargetsError: the sample's shard is not committed.
            CorruptTargetsError: stored bytes do not match their checksum; names shard, array and sample.
        """
        arrays = self._read(np.asarray([position], dtype=np.int64), view)
        return SampleTargets(**{name: array[0] for name, array in arrays.items()})

    def read_many(self, positions: Sequence[int] | npt.NDArray[np.integer], view: str = "full") -> SampleTargets:
        """Read B samples, in any order, stacked along a first axis; raises as `read` does."""
        return SampleTargets(**self._read(np.asarray(positions, dtype=np.int64).reshape(-1), view))

    def read_words(self, positions: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Read the words of B samples alone, ids into the vocabulary int32 [B, M], -1 padded; raises as `read` does."""
        words: npt.NDArray[np.int32] = self._read(
            np.asarray(positions, dtype=np.int64).reshape(-1), "full", ("words",)
        )["words"]
        return words

    def _read(
        self, positions: npt.NDArray[np.int64], view: str, names: Collection[str] | None = None
    ) -> dict[str, Any]:
        if view not in self._spec.views:
            raise UnknownNameError("view", view, self._spec.views)
        self._check(positions)
        return self._open(view).read(positions, names)

    def _require_intact(self, files: tuple[str, ...]) -> None:
        for name in files:
            complaint = self._manifest.files[name].complaint(read_whole(self._root / name))
            if complaint:
                raise CorruptTargetsError(
                    f"{self._root / name} {complaint}. Run the same extract command again to restore it."
                )

    def _check(self, positions: npt.NDArray[np.int64]) -> None:
        for position in positions.tolist():
            if not 0 <= position < len(self):
                raise IndexError(f"position must be in 0..{len(self) - 1}, got {position}.")
            shard = position // self._spec.samples_per_shard
            if shard not in self._records:
                raise IncompleteTargetsError(
                    f"Sample {position} lies in shard {shard} of {self._root}, which is not committed. "
                    "Run the same extract command again to finish it."
                )

    def _open(self, view: str) -> ViewReader:
        handles = self._handles
        if handles is None or handles.process != os.getpid():
            context = new_context() if self.layout == "zarr" else None
            handles = self._handles = _Handles(process=os.getpid(), context=context)
        if view not in handles.views:
            handles.views[view] = (
                ZarrView(self._root, self._manifest, view, handles.context)
                if self.layout == "zarr"
                else TarView(self._root, self._spec, self.index, view)
            )
        return handles.views[view]

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self._root, "data_root": self._data_root, "require_complete": self._require_complete}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["data_root"], state["require_complete"])  # type: ignore[misc]

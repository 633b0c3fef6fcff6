"""Read a cache at random, in storage form; `codec.decode_maps` turns it into maps where they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lfi_pipeline.errors import CorruptTargetsError, IncompleteTargetsError, UnknownNameError
from lfi_pipeline.targets.arrays import ArrayReader, new_context, open_array
from lfi_pipeline.targets.commits import CommitRecord, Summary, committed_shards, remedy, summarise
from lfi_pipeline.targets.files import read_whole, unseal
from lfi_pipeline.targets.index import TargetIndex
from lfi_pipeline.targets.layout import SOURCE, array_folder, array_layouts
from lfi_pipeline.targets.manifest import Manifest
from lfi_pipeline.targets.plan import Vocabulary
from lfi_pipeline.targets.spec import TargetSpec

T = TypeVar("T")


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
    """Open arrays, and the process that opened them."""

    process: int
    context: Any
    views: dict[str, dict[str, ArrayReader]] = field(default_factory=dict)


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
        self._records = {shard: CommitRecord.load(root, shard) for shard in shards}
        self._handles: _Handles | None = None

    @classmethod
    def open(
        cls, path: str | Path, *, data_root: str | Path | None = None, require_complete: bool = True
    ) -> TargetStore:
        """Open a cache for reading.

        Args:
            path: the cache's directory.
            data_root: where the images lie, if not where the writer recorded.
            require_complete: refuse a cache in which shards are missing.

        Raises:
            TargetsError: not a cache, or one of an unknown version.
            IncompleteTargetsError: shards are missing.
            CorruptTargetsError: manifest or commit records do not match their checksums.
        """
        override = None if data_root is None else Path(data_root).expanduser().absolute()
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

    @cached_property
    def data_root(self) -> Path:
        """Where the images lie; raises CorruptTargetsError if the recorded place cannot be read."""
        if self._data_root is not None:
            return self._data_root
        path = self._root / SOURCE
        return Path(unseal(read_whole(path), path)["data_root"])

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Words, and their text embeddings as float32 [V, E].

        Raises:
            CorruptTargetsError: a file of it does not match the manifest.
        """
        for name in ("vocabulary.json", "vocabulary.npy"):
            complaint = self._manifest.files[name].complaint(read_whole(self._root / name))
            if complaint:
                raise CorruptTargetsError(
                    f"{self._root / name} {complaint}. Run the same extract command again to restore it."
                )
        return Vocabulary.load(self._root)

    @cached_property
    def index(self) -> TargetIndex:
        """Keys, paths, labels, ... by position; columns are read when first asked for."""
        quarantined = [position for record in self._records.values() for position in record.quarantined]
        return TargetIndex(self._root, self._spec, list(self._records), quarantined)

    @cached_property
    def usable(self) -> npt.NDArray[np.int64]:
        """Positions that are committed and not quarantined, ascending."""
        return np.flatnonzero(self.index.committed & ~self.index.quarantined).astype(np.int64)

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

    def _read(self, positions: npt.NDArray[np.int64], view: str) -> dict[str, Any]:
        if view not in self._spec.views:
            raise UnknownNameError("view", view, self._spec.views)
        self._check(positions)
        arrays = self._open(view)
        try:
            started = {name: array.start(positions) for name, array in arrays.items()}
            return {name: wait() for name, wait in started.items()}
        except (ValueError, OSError) as error:
            raise self._locate(positions, view, error) from error

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

    def _open(self, view: str) -> dict[str, ArrayReader]:
        handles = self._handles
        if handles is None or handles.process != os.getpid():
            handles = self._handles = _Handles(process=os.getpid(), context=new_context())
        if view not in handles.views:
            opened = {}
            for name, layout in array_layouts(self._spec).items():
                folder = self._root / array_folder(view, name)
                try:
                    opened[name] = open_array(folder, layout, handles.context)
                except (ValueError, OSError) as error:
                    raise CorruptTargetsError(f"Cannot open {folder}: {_first_line(error)}") from error
            handles.views[view] = opened
        return handles.views[view]

    def _locate(self, positions: npt.NDArray[np.int64], view: str, error: Exception) -> CorruptTargetsError:
        """Find the first sample and array behind a failed read."""
        for position in positions:
            for name, array in self._open(view).items():
                try:
                    _wait(array.start(np.asarray([position])))
                except (ValueError, OSError) as found:
                    shard = int(position) // self._spec.samples_per_shard
                    return CorruptTargetsError(
                        f"Cannot read shard {shard}, array {view}/{name}, sample {position} of {self._root}: "
                        f"{_first_line(found)} {remedy(self._root, shard)}"
                    )
        return CorruptTargetsError(f"Cannot read {self._root}: {_first_line(error)}")

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self._root, "data_root": self._data_root, "require_complete": self._require_complete}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["data_root"], state["require_complete"])  # type: ignore[misc]


def _wait(wait: Callable[[], T]) -> T:
    return wait()


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if text.endswith(".") else f"{text}."

"""Rows that another cache of the same teacher holds already: extending a cache by images, layers, views or words.

The old cache stays readable, and untouched, until the new one is complete. A rerun of the same command goes on wherever
it was killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lfi_pipeline.core.errors import CorruptTargetsError, LFIError, OutputExistsError, SpecMismatchError
from lfi_pipeline.core.io import exchange, one_at_a_time, output_errors, sync_directory
from lfi_pipeline.targets import ShardPayload, TargetSpec, TargetStore, TargetWriter, decode_maps

_MAY_DIFFER = ("dataset.", "layers", "views", "words_per_sample", "samples_per_shard")


@dataclass(frozen=True, slots=True, eq=False)
class ReusedRows:
    """What a donor gave for the n samples of a shard.

    Attributes:
        missing: bool [V, n, L], where the teacher must run.
        image_crc32c: int64 [n], of the image that the donor's rows belong to; -1 where nothing was given.
    """

    missing: npt.NDArray[np.bool_]
    image_crc32c: npt.NDArray[np.int64]

    @classmethod
    def nothing(cls, spec: TargetSpec, samples: int) -> ReusedRows:
        """Return reuse of no row: the teacher must run for every view, sample and layer."""
        return cls(
            np.ones((len(spec.views), samples, len(spec.layers)), dtype=bool), np.full(samples, -1, dtype=np.int64)
        )

    def require_same_image(self, row: int, crc32c: int, path: str) -> None:
        """Raise CorruptTargetsError if the image of a sample with given rows has changed since they were made."""
        if self.image_crc32c[row] not in (-1, crc32c):
            raise CorruptTargetsError(
                f"{path} is not the image that the cache holds rows of: its crc32c is {crc32c:08x}, recorded was "
                f"{int(self.image_crc32c[row]):08x}. Restore the image, or extract into another directory."
            )


class ReusableCache:
    """A cache that gives its rows to one of another spec.

    Args:
        store: the cache; may be incomplete.
        spec: of the cache that is being made.

    Raises:
        SpecMismatchError: the rows of one would not be true of the other; names the fields.
    """

    def __init__(self, store: TargetStore, spec: TargetSpec) -> None:
        lines = [line for line in store.spec.differences(spec) if not line.startswith(_MAY_DIFFER)]
        lines += [line for line in store.spec.differences(spec) if line.startswith(("dataset.name", "dataset.split"))]
        if lines:
            raise SpecMismatchError(
                f"The cache at {store.path} can be extended by images, layers, views and words only; these differ "
                "(cache != this run):\n  " + "\n  ".join(lines) + "\nExtract into another directory."
            )
        self._store, self._spec = store, spec
        self.mean_kl = store.summary().codec_kl
        names = [layer.name for layer in store.spec.layers]
        self._layers = [(i, names.index(layer.name)) for i, layer in enumerate(spec.layers) if layer.name in names]
        usable = set(store.usable.tolist())
        self._position = {key: i for i, key in enumerate(store.index.keys) if i in usable}

    def give(
        self, keys: Sequence[str], captions: Sequence[str], words: Sequence[Sequence[str]], payload: ShardPayload
    ) -> ReusedRows:
        """Fill the rows of `payload` that the donor has; a sample whose texts differ gets nothing.

        Args:
            keys, captions, words: of the shard's n samples.
            payload: arrays of zeros, with word ids; filled in place.
        """
        donation = ReusedRows.nothing(self._spec, len(keys))
        index = self._store.index
        pairs = [
            (row, position)
            for row, (key, caption) in enumerate(zip(keys, captions, strict=True))
            if (position := self._position.get(key)) is not None and index.captions[position] == caption
        ]
        if not pairs or not self._layers:
            return donation
        rows, positions = (np.array(column) for column in zip(*pairs, strict=True))
        for v, view in enumerate(self._spec.views):
            if view in self._store.spec.views:
                self._give_view(view, rows, positions, words, payload, donation.missing[v])
        for row, position in pairs:
            if not donation.missing[:, row].all():
                donation.image_crc32c[row] = payload.image_crc32c[row] = index.image_crc32c[position]
                payload.image_size[row] = max(0, index.image_size[position])  # type: ignore[index]
        return donation

    def _give_view(
        self,
        view: str,
        rows: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        words: Sequence[Sequence[str]],
        payload: ShardPayload,
        missing: npt.NDArray[np.bool_],
    ) -> None:
        stored, arrays = self._store.read_many(positions, view), payload.views[view]
        maps = decode_maps(stored.maps, stored.scale, self._spec.codec.name)  # [b, L', M', gh, gw]
        ours, theirs = (np.array(layers) for layers in zip(*self._layers, strict=True))
        names = self._store.vocabulary.words
        for i, row in enumerate(rows.tolist()):
            slot_of = {names[word]: slot for slot, word in enumerate(stored.words[i].tolist()) if word >= 0}
            wanted = [(slot, word) for slot, word in enumerate(words[row]) if arrays.words[row, slot] >= 0]
            if not all(word in slot_of for _, word in wanted):
                continue
            missing[row, ours] = False
            arrays.image_embedding[row] = stored.image_embedding[i]
            for slot, word in wanted:
                arrays.maps[row, ours, slot] = maps[i, theirs, slot_of[word]]
                assert arrays.kept is not None
                arrays.kept[row, ours, slot] = stored.kept[i, theirs, slot_of[word]]


@dataclass(frozen=True, slots=True, eq=False)
class Extension:
    """One cache about to replace another.

    Attributes:
        out: where the cache is to be.
        place: where the new one is written; `out` itself where there is nothing to extend.
        donor: the old cache, or None.
    """

    out: Path
    place: Path
    donor: ReusableCache | None

    @classmethod
    def of(cls, out: Path, spec: TargetSpec, overwrite: bool = False) -> Extension:
        """Find the cache at `out` that is to be extended to `spec`.

        Args:
            out: where it is.
            spec: of the cache that is wanted.
            overwrite: take no row over, whatever the cache at `out` is of.

        Raises:
            SpecMismatchError: its rows would not be true of the new spec; names the fields.
            TargetsError: `out` is not a cache.
        """
        out = out.expanduser().absolute()
        place, before = _sibling(out, "extending"), _sibling(out, "before")
        with output_errors(out), one_at_a_time(out.parent) if out.parent.is_dir() else nullcontext():
            if not out.exists() and before.exists():  # killed between the two renames, where there is no exchange
                before.rename(out)
            if not out.exists():
                return cls(out, out, None)
            if before.exists() and not place.exists() and _holds(before, spec) and not _holds(out, spec):
                before.rename(place)  # killed right before the exchange
            shutil.rmtree(before, ignore_errors=True)  # killed after it
        store = TargetStore.open(out, require_complete=False)
        if overwrite:
            if place.exists() and TargetStore.open(place, require_complete=False).spec != spec:
                shutil.rmtree(place)  # of an attempt that was given up
            return cls(out, place, None)
        if store.spec == spec:
            return cls(out, out, None)
        return cls(out, place, ReusableCache(store, spec))

    @property
    def done(self) -> bool:
        """Whether the new cache has taken the old one's place."""
        return self.place != self.out and not self.place.exists()

    def put_in_place(self) -> None:
        """Replace the old cache by the new one, in one step where the system can; the old one is deleted last.

        Raises:
            OutputWriteError: the directories cannot be renamed.
        """
        if self.place == self.out:
            return
        before = _sibling(self.out, "before")
        with output_errors(self.out), one_at_a_time(self.out.parent):
            if not self.place.exists():  # another process of the same run has done it
                return
            shutil.rmtree(before, ignore_errors=True)
            self.place.rename(before)
            sync_directory(self.out.parent)
            if not exchange(before, self.out):
                before.rename(self.place)
                self.out.rename(before)
                self.place.rename(self.out)
            sync_directory(self.out.parent)
            shutil.rmtree(before, ignore_errors=True)


def recorded_centre(out: Path) -> tuple[str, ...]:
    """Return the words that the maps of the cache at `out` are centred over; empty where there are none, or no cache.

    What extends a cache keeps its centre: another would be another map.
    """
    out = out.expanduser().absolute()
    before = _sibling(out, "before")
    place = out if out.exists() else before
    return TargetStore.open(place, require_complete=False).spec.maps.centre if place.exists() else ()


def require_same_templates(writer: TargetWriter, templates: tuple[str, ...], place: Path) -> None:
    """Refuse templates of the class embeddings that are not the cache's; the spec holds only those that are read."""
    stored = writer.zero_shot
    if stored is not None and stored.templates != templates:
        raise SpecMismatchError(
            f"The cache at {place} holds class embeddings of other prompts (cache != this run):\n  "
            f"classes.templates: {stored.templates!r} != {templates!r}\n"
            "Run with the cache's prompts, or choose another output directory."
        )


def _holds(path: Path, spec: TargetSpec) -> bool:
    """Whether a complete cache of `spec` lies at `path`."""
    try:
        return TargetStore.open(path).spec == spec
    except LFIError:
        return False


def _sibling(out: Path, what: str) -> Path:
    path = out.with_name(f".{out.name}.lfi-{what}")
    if path.is_file():
        raise OutputExistsError(f"{path} must be free, or a cache left by an interrupted run; it is a file.")
    return path

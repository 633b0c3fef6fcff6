"""Extend a cache by images, layers, views or words: a new cache is made beside it, then takes its place.

The old cache stays readable, and untouched, until the new one is complete. A rerun of the same command goes on wherever
it was killed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lfi_pipeline.errors import OutputExistsError
from lfi_pipeline.targets import TargetSpec, TargetStore
from lfi_pipeline.targets.files import output_errors, sync_directory
from lfi_pipeline.teachers.donors import Donor


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
    donor: Donor | None

    @classmethod
    def of(cls, out: Path, spec: TargetSpec) -> Extension:
        """Find the cache at `out` that is to be extended to `spec`.

        Raises:
            SpecMismatchError: its rows would not be true of the new spec; names the fields.
            TargetsError: `out` is not a cache.
        """
        out = out.expanduser().absolute()
        place, before = _sibling(out, "extending"), _sibling(out, "before")
        if not out.exists() and before.exists():  # killed between the two renames of put_in_place
            with output_errors(out):
                before.rename(out)
        if not out.exists():
            return cls(out, out, None)
        shutil.rmtree(before, ignore_errors=True)  # killed after them
        store = TargetStore.open(out, require_complete=False)
        if store.spec == spec:
            return cls(out, out, None)
        return cls(out, place, Donor(store, spec))

    @property
    def done(self) -> bool:
        """Whether the new cache has taken the old one's place."""
        return self.place != self.out and not self.place.exists()

    def put_in_place(self) -> None:
        """Replace the old cache by the new one; the old one is deleted last.

        Raises:
            OutputWriteError: the directories cannot be renamed.
        """
        if self.place == self.out:
            return
        before = _sibling(self.out, "before")
        with output_errors(self.out):
            try:
                self.out.rename(before)
                self.place.rename(self.out)
            except FileNotFoundError:  # another process of the same run does it, or has done it
                return
            sync_directory(self.out.parent)
            shutil.rmtree(before, ignore_errors=True)


def _sibling(out: Path, what: str) -> Path:
    path = out.with_name(f".{out.name}.lfi-{what}")
    if path.is_file():
        raise OutputExistsError(f"{path} must be free, or a cache left by an interrupted run; it is a file.")
    return path

"""Data set manifests: one declarative TOML file per data set, shipped in the wheel."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from lfi_pipeline.errors import DatasetError, UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a data set's files are called and where it comes from.

    Attributes:
        teacher: `NAME[:TAG]` of the teacher that suits it, used where none is asked for.
        layout: name of the reader that knows the layout (`coco`).
        options: the table named like the layout, passed to that reader.
        splits: split name -> role -> POSIX path below the data root.
    """

    name: str
    title: str
    license: str
    homepage: str
    obtain: str
    teacher: str
    layout: str
    options: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, str]]

    def files(self, split: str) -> Mapping[str, str]:
        """Return the files of `split`; an unknown split lists the choices."""
        if split not in self.splits:
            raise UnknownNameError(f"split of {self.name}", split, self.splits)
        return self.splits[split]


def manifest_names() -> tuple[str, ...]:
    """Return the names of all shipped manifests, sorted."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))
    )


def load_manifest(name: str) -> Manifest:
    """Return the manifest of data set `name`.

    Raises:
        UnknownNameError: no manifest has this name.
        DatasetError: the manifest lacks a field.
    """
    if name not in manifest_names():
        raise UnknownNameError("data set", name, manifest_names())
    table = tomllib.loads((_folder() / f"{name}.toml").read_text(encoding="utf-8"))
    options = table.pop(table.get("layout", ""), {})
    try:
        return Manifest(options=options, **table)
    except TypeError as error:
        raise DatasetError(f"data_manifests/{name}.toml is not a valid manifest: {error}.") from error


def _folder() -> Traversable:
    """`data_manifests/` inside the wheel, or at the root of the checkout in an editable install."""
    packaged = resources.files("lfi_pipeline") / "data_manifests"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "data_manifests"

"""Data sets: manifest -> samples, images as the world has them, and the replay of augmentations on maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lfi_pipeline.data.coco import read_coco
from lfi_pipeline.data.manifest import Manifest, load_manifest, manifest_names
from lfi_pipeline.data.sample import Dataset, Instance, Sample

__all__ = ["Dataset", "Instance", "Manifest", "Sample", "load_manifest", "manifest_names", "read_dataset"]

_READERS: dict[str, Callable[[Manifest, Path, str], Dataset]] = {"coco": read_coco}


def read_dataset(name: str, root: Path, split: str) -> Dataset:
    """Read split `split` of data set `name` from `root`.

    Raises:
        UnknownNameError: unknown data set or split; lists the choices.
        DatasetError: `root` is not laid out as the manifest says; shows both.
    """
    manifest = load_manifest(name)
    return _READERS[manifest.layout](manifest, Path(root), split)

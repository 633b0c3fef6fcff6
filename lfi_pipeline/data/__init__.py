"""Data sets: manifest -> samples, images as the world has them, and the replay of augmentations on maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lfi_pipeline.data.coco import read_coco
from lfi_pipeline.data.described import expected_tree, summarize
from lfi_pipeline.data.imagefolder import read_imagefolder
from lfi_pipeline.data.manifest import Manifest, load_manifest, manifest_names
from lfi_pipeline.data.pacs import read_pacs
from lfi_pipeline.data.sample import Dataset, Instance, Sample
from lfi_pipeline.data.table import SampleTable
from lfi_pipeline.data.tiny_imagenet import read_tiny_imagenet
from lfi_pipeline.data.vlcs import read_vlcs
from lfi_pipeline.data.webdataset import read_webdataset
from lfi_pipeline.errors import DatasetError

__all__ = [
    "Dataset",
    "Instance",
    "Manifest",
    "Sample",
    "SampleTable",
    "expected_tree",
    "load_manifest",
    "manifest_names",
    "read_dataset",
    "summarize",
]

_READERS: dict[str, Callable[[Manifest, Path, str], Dataset]] = {
    "coco": read_coco,
    "imagefolder": read_imagefolder,
    "pacs": read_pacs,
    "tiny-imagenet": read_tiny_imagenet,
    "vlcs": read_vlcs,
    "webdataset": read_webdataset,
}


def read_dataset(name_or_path: str | Path, root: Path, split: str) -> Dataset:
    """Read split `split` of a data set from `root`.

    Args:
        name_or_path: name of a shipped manifest, path of the user's own `.toml`, or the name of a manifest that lies in
            `root` as `NAME.toml`.

    Raises:
        UnknownNameError: unknown data set or split; lists the choices.
        DatasetError: `root` cannot be read, or is not laid out as the manifest says (shows both), or two samples share
            a key.
    """
    root = Path(root)
    manifest = load_manifest(name_or_path, root)
    try:
        dataset = _READERS[manifest.layout](manifest, root, split)
    except OSError as error:  # permissions, a network drive that went away, a name that is too long
        raise DatasetError(f"Data root {root} cannot be read: {error}.") from error
    repeated = dataset.samples.repeated_keys() if isinstance(dataset.samples, SampleTable) else []
    if repeated:
        raise DatasetError(
            f"{root}: samples of {manifest.name}, {split}, must have names of their own; repeated: "
            f"{', '.join(repeated)}. Rename or remove one of each."
        )
    return dataset

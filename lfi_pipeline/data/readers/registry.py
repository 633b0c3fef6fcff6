"""Read a split of a data set, by the reader of its layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Dataset, SampleTable
from lfi_pipeline.data.manifest import Manifest, load_manifest
from lfi_pipeline.data.readers.class_folders import read_imagefolder, read_tiny_imagenet
from lfi_pipeline.data.readers.coco import read_coco
from lfi_pipeline.data.readers.domains import read_pacs, read_vlcs
from lfi_pipeline.data.readers.webdataset import read_webdataset

_READERS: dict[str, Callable[[Manifest, Path, str], Dataset]] = {
    "coco": read_coco,
    "imagefolder": read_imagefolder,
    "pacs": read_pacs,
    "tiny-imagenet": read_tiny_imagenet,
    "vlcs": read_vlcs,
    "webdataset": read_webdataset,
}


def read_dataset(name_or_path: str | Path, root: Path, split: str, *, strict: bool = False) -> Dataset:
    """Read split `split` of a data set from `root`.

    Args:
        name_or_path: name of a shipped manifest, path of the user's own `.toml`, or the name of a manifest that lies in
            `root` as `NAME.toml`.
        root: the data root.
        split: name of the split.
        strict: refuse files from which something has to be left out (`Dataset.notes`).

    Raises:
        UnknownNameError: unknown data set or split; lists the choices.
        DatasetError: `root` cannot be read, or is not laid out as the manifest says (shows both), or two samples share
            a key.
    """
    root = Path(root)
    manifest = load_manifest(name_or_path, root)
    try:
        dataset = _READERS[manifest.layout](manifest, root, split)
        if strict and dataset.notes:
            raise DatasetError(f"{'; '.join(dataset.notes)}. Mend the files, or read them without strict.")
    except OSError as error:  # permissions, a network drive that went away, a name that is too long
        raise DatasetError(f"Data root {root} cannot be read: {error}.") from error
    repeated = dataset.samples.repeated_keys() if isinstance(dataset.samples, SampleTable) else []
    if repeated:
        raise DatasetError(
            f"{root}: samples of {manifest.name}, {split}, must have names of their own; repeated: "
            f"{', '.join(repeated)}. Rename or remove one of each."
        )
    return dataset

"""Read the COCO layout: an image folder, and files of captions, of instances, or of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Dataset
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.objects import InstancesByKey
from lfi_pipeline.data.readers.coco_listing import read_listing


def read_coco(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split; images are listed in order of their id, files are not opened.

    A record that cannot be understood is left out and told in `Dataset.notes`.

    Raises:
        DatasetError: a file of the layout is missing, is not JSON of COCO's form, or captions and images do not
            belong together.
    """
    files = manifest.files(split)
    _require_layout(manifest, root, files)
    captions, instances = files.get("captions"), files.get("instances")
    listing = read_listing(
        root / instances if instances is not None else None,
        root / captions if captions is not None else None,
        folder=files["images"],
        domain_field=manifest.options.get("domain_field", ""),
    )
    return Dataset(
        name=manifest.name,
        root=root,
        split=split,
        classes=listing.classes,
        samples=listing.samples,
        instances=InstancesByKey(listing.objects, listing.samples.column("key")) if len(listing.objects) else {},
        prompts=manifest.prompts,
        notes=listing.notes,
    )


def _require_layout(manifest: Manifest, root: Path, files: Mapping[str, str]) -> None:
    if not root.is_dir():
        raise DatasetError(f"Data root {root} must be a directory. {manifest.how_to_obtain}".rstrip())
    missing = [path for path in files.values() if not (root / path).exists()]
    if missing:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:12]) or "nothing"
        raise DatasetError(
            f"Data root {root} must hold {', '.join(files.values())} (layout of {manifest.name}); "
            f"missing: {', '.join(missing)}; found there: {found}. {manifest.how_to_obtain}".rstrip()
        )
    if next((root / files["images"]).iterdir(), None) is None:
        raise DatasetError(f"Image folder {root / files['images']} is empty. {manifest.how_to_obtain}".rstrip())

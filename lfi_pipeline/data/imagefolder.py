"""Read torchvision's ImageFolder layout: `<split>/<class>/**/*.jpg`, or images without classes in `<split>/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lfi_pipeline.data.expectation import misfit, require_directory
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.sample import Dataset, Sample
from lfi_pipeline.data.table import SampleTable
from lfi_pipeline.data.trees import image_paths, is_image, keys_of, subfolders
from lfi_pipeline.errors import DatasetError

WHOLE_ROOT = "."


def read_imagefolder(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split. Classes are the folders of all splits together, sorted, so that labels agree between splits.

    The split whose folder is `.` is the data root itself: `<class>/**/*.jpg` with no folders of splits. A folder with
    images and no class folders is a split of unlabelled images (`classes` is empty).

    Raises:
        DatasetError: no such folder, no image in it, images beside class folders.
    """
    require_directory(manifest, root)
    folder = manifest.files(split)["folder"]
    others = sorted({files["folder"] for files in manifest.splits.values()} - {WHOLE_ROOT})
    if folder == WHOLE_ROOT:
        present = [name for name in others if (root / name).is_dir()]
        if present:
            raise misfit(
                manifest, root, "class folders", remedy=f"It has folders of splits; ask for one: {', '.join(present)}"
            )
    elif not (root / folder).is_dir():
        whole = [name for name, files in manifest.splits.items() if files["folder"] == WHOLE_ROOT]
        hint = f"Class folders right below it, in no folder of a split, are read as split {whole[0]!r}" if whole else ""
        raise misfit(manifest, root, f"{folder}/<class>/**/<images>", remedy=hint)
    base = root / folder
    own = subfolders(base)
    if any(is_image(entry.name) and not entry.name.startswith(".") for entry in base.iterdir()):
        if own:
            raise misfit(manifest, base, "class folders or images, not both", remedy="Move the images into a class")
        own = []
    elif not own:
        raise misfit(manifest, base, "class folders with images")
    shared = [WHOLE_ROOT] if folder == WHOLE_ROOT else [name for name in others if (root / name).is_dir()]
    classes = tuple(sorted({name for each in shared for name in subfolders(root / each)})) if own else ()
    prefix = "" if folder == WHOLE_ROOT else f"{folder}/"
    samples = SampleTable(labelled(base, prefix, own, classes) if own else _unlabelled(base, prefix))
    if not samples:
        raise misfit(manifest, base, "class folders with images")
    return Dataset(
        name=manifest.name, root=root, split=split, classes=classes, samples=samples, prompts=manifest.prompts
    )


def labelled(
    base: Path, prefix: str, folders: Sequence[str], classes: Sequence[str], *, domain: str = "", key_prefix: str = ""
) -> Iterator[Sample]:
    """Yield the images of each class folder of `base`, in the order of their paths.

    Args:
        prefix: path of `base` below the data root, with a slash at its end, or empty.
        folders: class folders to read.
        classes: names that labels index into.
        key_prefix: what keys begin with.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    for folder in folders:
        paths = image_paths(base / folder)
        for path, key in zip(paths, keys_of(paths), strict=True):
            yield image_sample(f"{prefix}{folder}/{path}", f"{key_prefix}{folder}/{key}", label_of[folder], domain)


def _unlabelled(base: Path, prefix: str) -> Iterator[Sample]:
    paths = image_paths(base)
    for path, key in zip(paths, keys_of(paths), strict=True):
        yield image_sample(prefix + path, key)


def image_sample(path: str, key: str, label: int | None = None, domain: str = "") -> Sample:
    """Return a sample of which nothing but its file and class is known."""
    labels = () if label is None else (label,)
    return Sample(key=key, path=path, captions=(), labels=labels, domain=domain, height=0, width=0)


def require_classes(folder: Path, found: Sequence[str], classes: Sequence[str]) -> None:
    """Raise a `DatasetError` that shows both unless the folders `found` in `folder` are `classes`."""
    if set(found) != set(classes):
        raise DatasetError(
            f"{folder} must hold one folder for each class: {', '.join(classes)}; found: {', '.join(found) or 'none'}."
        )

"""Read folders of classes: torchvision's ImageFolder layout, and Tiny ImageNet as it is unpacked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Dataset, Sample, SampleTable
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.readers.names import is_image
from lfi_pipeline.data.readers.walk import (
    image_paths,
    keys_of,
    misfit,
    read_lines,
    require_directory,
    subfolders,
)

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


def read_images(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split: every image below its folder, however deep, without classes.

    Raises:
        DatasetError: no such folder, or no image in it.
    """
    require_directory(manifest, root)
    folder = manifest.files(split)["folder"]
    if not (root / folder).is_dir():
        raise misfit(manifest, root, f"{folder}/")
    samples = SampleTable(_unlabelled(root / folder, "" if folder == WHOLE_ROOT else f"{folder}/"))
    if not samples:
        raise misfit(manifest, root / folder, "images")
    return Dataset(name=manifest.name, root=root, split=split, classes=(), samples=samples, prompts=manifest.prompts)


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


_WNID = re.compile(r"n[0-9]{8}")
_UNSORTED = "images"  # the folder that holds the images of all classes


def read_tiny_imagenet(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split. Labels follow the sorted WordNet ids; a class is called by the first synonym of `words.txt`.

    The boxes (`<wnid>_boxes.txt`, and the numbers of `val_annotations.txt`) are left alone: they are no masks. A
    validation folder that was sorted into class folders is read as well.

    Raises:
        DatasetError: a file is absent or has a line of another form; names file and line.
    """
    require_directory(manifest, root)
    files, options = manifest.files(split), manifest.options
    needed = [options["wnids"], options["words"], files["images"]]
    place = next((each for each in options["folders"] if all((root / each / name).exists() for name in needed)), None)
    if place is None:
        raise misfit(manifest, root, f"{', '.join(needed)} (in one of {', '.join(options['folders'])})")
    base, prefix = root / place, "" if place == "." else f"{place}/"
    wnids = _wnids(base / options["wnids"])
    folder, annotations = files["images"], files.get("annotations")
    found = [name for name in subfolders(base / folder) if name != _UNSORTED]
    if annotations is None or found:
        require_classes(base / folder, found, wnids)
        source = labelled(base / folder, f"{prefix}{folder}/", found, wnids)
    else:
        images = f"{folder}/{_UNSORTED}"
        if not (base / images).is_dir() or not (base / annotations).is_file():
            raise misfit(manifest, base / folder, f"{_UNSORTED}/ and {Path(annotations).name}, or a folder a class")
        source = _annotated(base / images, f"{prefix}{images}/", base / annotations, wnids)
    samples = SampleTable(source)
    if not samples:
        raise misfit(manifest, base / folder, "images")
    return Dataset(
        name=manifest.name,
        root=root,
        split=split,
        classes=_names(base / options["words"], wnids),
        samples=samples,
        prompts=manifest.prompts,
    )


def _wnids(path: Path) -> list[str]:
    found: list[str] = []
    for number, line in read_lines(path):
        if not _WNID.fullmatch(line.strip()):
            raise DatasetError(f"{path}, line {number}: must be a WordNet id such as n01443537, got {line!r}.")
        found.append(line.strip())
    if not found or len(set(found)) != len(found):
        raise DatasetError(f"{path} must hold each WordNet id once, and at least one.")
    return sorted(found)


def _names(path: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    wanted = dict.fromkeys(wnids, "")
    for number, line in read_lines(path):
        wnid, tab, words = line.partition("\t")
        if not tab:
            raise DatasetError(f"{path}, line {number}: must be a WordNet id, a tab and words, got {line!r}.")
        if wnid in wanted:
            wanted[wnid] = words.partition(",")[0].strip()
    nameless = [wnid for wnid, name in wanted.items() if not name]
    if nameless:
        raise DatasetError(f"{path} must name every class; it has no words for {', '.join(nameless[:5])}.")
    return tuple(wanted.values())


def _annotated(folder: Path, prefix: str, annotations: Path, wnids: Sequence[str]) -> Iterator[Sample]:
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    there = frozenset(image_paths(folder))
    for number, line in read_lines(annotations):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if wnid not in label_of:
            raise DatasetError(
                f"{annotations}, line {number}: must be a file name, a tab and a WordNet id of wnids.txt, got {line!r}."
            )
        if name not in there:
            raise DatasetError(f"{annotations}, line {number}: there is no image {name} in {folder}.")
        yield image_sample(prefix + name, name.rpartition(".")[0], label_of[wnid])

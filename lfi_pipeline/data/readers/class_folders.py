"""Read folders of classes, and of domains with classes: ImageFolder, Tiny ImageNet, PACS, VLCS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.io import why_unsafe
from lfi_pipeline.data.dataset import Dataset, Sample, SampleTable
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.readers.exports import folder_captions
from lfi_pipeline.data.readers.sniff import is_image
from lfi_pipeline.data.readers.walk import (
    WHOLE_ROOT,
    image_paths,
    keys_of,
    layout_error,
    prefix_of,
    read_labelled_paths,
    read_lines,
    require_directory,
    subfolders,
)


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
            raise layout_error(
                manifest, root, "class folders", remedy=f"It has folders of splits; ask for one: {', '.join(present)}"
            )
    elif not (root / folder).is_dir():
        whole = [name for name, files in manifest.splits.items() if files["folder"] == WHOLE_ROOT]
        hint = f"Class folders right below it, in no folder of a split, are read as split {whole[0]!r}" if whole else ""
        raise layout_error(manifest, root, f"{folder}/<class>/**/<images>", remedy=hint)
    base = root / folder
    own = subfolders(base)
    if any(is_image(entry.name) and not entry.name.startswith(".") for entry in base.iterdir()):
        if own:
            raise layout_error(
                manifest, base, "class folders or images, not both", remedy="Move the images into a class"
            )
        own = []
    elif not own:
        raise layout_error(manifest, base, "class folders with images")
    shared = [WHOLE_ROOT] if folder == WHOLE_ROOT else [name for name in others if (root / name).is_dir()]
    classes = tuple(sorted({name for each in shared for name in subfolders(root / each)})) if own else ()
    prefix = prefix_of(folder)
    samples = SampleTable(labelled(base, prefix, own, classes) if own else _unlabelled(base, prefix))
    if not samples:
        raise layout_error(manifest, base, "class folders with images")
    return Dataset(
        name=manifest.name, root=root, split=split, classes=classes, samples=samples, prompts=manifest.prompts
    )


def read_images(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split: every image below its folder, however deep, without classes, with captions where there are any.

    Raises:
        DatasetError: no such folder, or no image in it; or as `folder_captions`.
    """
    require_directory(manifest, root)
    folder = manifest.files(split)["folder"]
    if not (root / folder).is_dir():
        raise layout_error(manifest, root, f"{folder}/")
    paths = image_paths(root / folder)
    if not paths:
        raise layout_error(manifest, root / folder, "images")
    captions, notes = folder_captions(root / folder, paths)
    prefix = prefix_of(folder)
    samples = SampleTable(
        replace(image_sample(prefix + path, key), captions=captions.get(path, ()))
        for path, key in zip(paths, keys_of(paths), strict=True)
    )
    return Dataset(
        name=manifest.name, root=root, split=split, classes=(), samples=samples, prompts=manifest.prompts, notes=notes
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


def require_classes(folder: Path, named: Sequence[str], classes: Sequence[str]) -> None:
    """Raise a `DatasetError` that shows both unless the folders `named` in `folder` are `classes`."""
    if set(named) != set(classes):
        raise DatasetError(
            f"{folder} must hold one folder for each class: {', '.join(classes)}; found: {', '.join(named) or 'none'}."
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
        raise layout_error(manifest, root, f"{', '.join(needed)} (in one of {', '.join(options['folders'])})")
    base, prefix = root / place, prefix_of(place)
    wnids = _wnids(base / options["wnids"])
    folder, annotations = files["images"], files.get("annotations")
    class_folders = [name for name in subfolders(base / folder) if name != _UNSORTED]
    if annotations is None or class_folders:
        require_classes(base / folder, class_folders, wnids)
        source = labelled(base / folder, f"{prefix}{folder}/", class_folders, wnids)
    else:
        images = f"{folder}/{_UNSORTED}"
        if not (base / images).is_dir() or not (base / annotations).is_file():
            raise layout_error(
                manifest, base / folder, f"{_UNSORTED}/ and {Path(annotations).name}, or a folder a class"
            )
        source = _annotated(base / images, f"{prefix}{images}/", base / annotations, wnids)
    samples = SampleTable(source)
    if not samples:
        raise layout_error(manifest, base / folder, "images")
    return Dataset(
        name=manifest.name,
        root=root,
        split=split,
        classes=_names(base / options["words"], wnids),
        samples=samples,
        prompts=manifest.prompts,
    )


def _wnids(path: Path) -> list[str]:
    wnids: list[str] = []
    for number, line in read_lines(path):
        if not _WNID.fullmatch(line.strip()):
            raise DatasetError(f"{path}, line {number}: must be a WordNet id such as n01443537, got {line!r}.")
        wnids.append(line.strip())
    if not wnids or len(set(wnids)) != len(wnids):
        raise DatasetError(f"{path} must hold each WordNet id once, and at least one.")
    return sorted(wnids)


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


def read_pacs(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split of all domains, domain by domain; the sample's domain is the name of the folder.

    A split with a `list` holds what the official files name, in their order; one without holds the whole tree. The
    official `test` lists name every image of a domain, train and crossval together: they are meant for a domain that
    was left out of training.

    Raises:
        DatasetError: the tree or a list is absent, a list names a class or an image that is not there.
    """
    require_directory(manifest, root)
    domains, classes = manifest.options["domains"], manifest.options["classes"]
    images = _images_folder(manifest, root)
    for domain in domains:
        require_classes(root / images / domain, subfolders(root / images / domain), classes)
    prefix = prefix_of(images)
    pattern = manifest.files(split).get("list")
    if pattern is None:
        source = (
            sample
            for domain in domains
            for sample in labelled(
                root / images / domain,
                f"{prefix}{domain}/",
                subfolders(root / images / domain),
                classes,
                domain=domain,
                key_prefix=f"{domain}/",
            )
        )
    else:
        lists = _lists(manifest, root, images, pattern, split)
        source = (
            sample
            for domain, path in zip(domains, lists, strict=True)
            for sample in _listed(manifest, root / images, prefix, domain, path)
        )
    samples = SampleTable(source)
    if not samples:
        raise layout_error(manifest, root / images, "images in its class folders")
    return Dataset(
        name=manifest.name,
        root=root,
        split=split,
        classes=tuple(classes),
        samples=samples,
        prompts=manifest.prompts,
    )


def _images_folder(manifest: Manifest, root: Path) -> str:
    domains = manifest.options["domains"]
    for folder in manifest.options["image_folders"]:
        if all((root / folder / domain).is_dir() for domain in domains):
            return str(folder)
    choices = ", ".join(manifest.options["image_folders"])
    raise layout_error(manifest, root, f"{', '.join(f'{domain}/<class>/' for domain in domains)} (in one of {choices})")


def _lists(manifest: Manifest, root: Path, images: str, pattern: str, split: str) -> list[Path]:
    names = [pattern.replace("{domain}", domain) for domain in manifest.options["domains"]]
    folders = dict.fromkeys([images, *manifest.options["list_folders"]])
    for folder in folders:
        if any((root / folder / name).is_file() for name in names):
            absent = [name for name in names if not (root / folder / name).is_file()]
            if absent:
                raise layout_error(manifest, root / folder, f"all of {', '.join(names)}; missing: {', '.join(absent)}")
            return [root / folder / name for name in names]
    whole = [name for name, files in manifest.splits.items() if "list" not in files]
    raise layout_error(
        manifest,
        root,
        f"the official lists {', '.join(names)} for split {split!r}, in one of {', '.join(folders)}",
        remedy=f"Put them there, or read the whole tree as split {whole[0]!r}" if whole else "",
    )


def _listed(manifest: Manifest, base: Path, prefix: str, domain: str, path: Path) -> Iterator[Sample]:
    classes: Sequence[str] = manifest.options["classes"]
    may_be_absent = frozenset(manifest.options["may_be_absent"])
    there = {f"{domain}/{image}" for image in image_paths(base / domain)}
    for number, name, label in read_labelled_paths(path, len(classes)):
        reason = why_unsafe(name)
        parts = name.split("/")
        if reason is not None or parts[:2] != [domain, classes[label]]:
            raise DatasetError(
                f"{path}, line {number}: label {label + 1} is {classes[label]}, so the image must lie in "
                f"{domain}/{classes[label]}/, got {name!r}."
            )
        if name in there:
            yield image_sample(prefix + name, name.rpartition(".")[0], label, domain)
        elif name not in may_be_absent:
            raise DatasetError(f"{path}, line {number}: there is no image {name} in {base}.")


def read_vlcs(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split of all domains, domain by domain, under DomainBed's names of the domains.

    DomainBed's tree has no splits: it is read as the split without a `folder`, which is `full` in the official release.

    Raises:
        DatasetError: neither tree is there, or the split is one that only the official release has.
    """
    require_directory(manifest, root)
    options, folder = manifest.options, manifest.files(split).get("folder")
    plain, official = options["domains"], options["official_domains"]
    if len(plain) != len(official):
        raise DatasetError(f"Manifest {manifest.name}: domains and official_domains must be of equal length.")
    for place in options["folders"]:
        base, prefix = root / place, prefix_of(place)
        if all((base / domain / (folder or "full")).is_dir() for domain in official):
            source = _official(manifest, base, prefix, folder or "full")
            break
        if all((base / domain).is_dir() for domain in plain):
            if folder is not None:
                raise layout_error(
                    manifest,
                    base,
                    f"the official release, {', '.join(f'{domain}/{folder}/' for domain in official)}, for split "
                    f"{split!r}",
                    remedy="DomainBed's copy has no splits: read it as split 'all'",
                )
            source = _domain_bed(manifest, base, prefix)
            break
    else:
        wanted = ", ".join(f"{domain}/{folder or 'full'}/0..{len(options['classes']) - 1}/" for domain in official)
        trees = f"{', '.join(f'{domain}/<class>/' for domain in plain)}, or the official {wanted}"
        raise layout_error(manifest, root, trees if folder is None else f"the official {wanted}")
    samples = SampleTable(source)
    if not samples:
        raise layout_error(manifest, base, "images in its class folders")
    return Dataset(
        name=manifest.name,
        root=root,
        split=split,
        classes=tuple(options["classes"]),
        samples=samples,
        prompts=manifest.prompts,
    )


def _domain_bed(manifest: Manifest, base: Path, prefix: str) -> Iterator[Sample]:
    classes = manifest.options["classes"]
    for domain in manifest.options["domains"]:
        class_folders = subfolders(base / domain)
        require_classes(base / domain, class_folders, classes)
        yield from labelled(
            base / domain, f"{prefix}{domain}/", class_folders, classes, domain=domain, key_prefix=f"{domain}/"
        )


def _official(manifest: Manifest, base: Path, prefix: str, folder: str) -> Iterator[Sample]:
    numbers = [str(label) for label in range(len(manifest.options["classes"]))]
    for domain, name in zip(manifest.options["domains"], manifest.options["official_domains"], strict=True):
        place = f"{name}/{folder}"
        class_folders = subfolders(base / place)
        if not class_folders or set(class_folders) - set(numbers):  # a small split may lack a class
            require_classes(base / place, class_folders, numbers)
        yield from labelled(
            base / place, f"{prefix}{place}/", class_folders, numbers, domain=domain, key_prefix=f"{domain}/"
        )

"""Read PACS: a `<domain>/<class>/*` tree and the official `<domain>_{train,crossval,test}_kfold.txt` where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lfi_pipeline.data.expectation import misfit, require_directory
from lfi_pipeline.data.imagefolder import image_sample, labelled, require_classes
from lfi_pipeline.data.listing import read_labelled_paths
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.paths import why_unsafe
from lfi_pipeline.data.sample import Dataset, Sample
from lfi_pipeline.data.table import SampleTable
from lfi_pipeline.data.trees import image_paths, subfolders
from lfi_pipeline.errors import DatasetError


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
    prefix = "" if images == "." else f"{images}/"
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
        raise misfit(manifest, root / images, "images in its class folders")
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
    raise misfit(manifest, root, f"{', '.join(f'{domain}/<class>/' for domain in domains)} (in one of {choices})")


def _lists(manifest: Manifest, root: Path, images: str, pattern: str, split: str) -> list[Path]:
    names = [pattern.replace("{domain}", domain) for domain in manifest.options["domains"]]
    folders = dict.fromkeys([images, *manifest.options["list_folders"]])
    for folder in folders:
        if any((root / folder / name).is_file() for name in names):
            absent = [name for name in names if not (root / folder / name).is_file()]
            if absent:
                raise misfit(manifest, root / folder, f"all of {', '.join(names)}; missing: {', '.join(absent)}")
            return [root / folder / name for name in names]
    whole = [name for name, files in manifest.splits.items() if "list" not in files]
    raise misfit(
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

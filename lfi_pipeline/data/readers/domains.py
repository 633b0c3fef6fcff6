"""Read data sets of several domains: PACS and VLCS, in their official layouts and DomainBed's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.io import why_unsafe
from lfi_pipeline.data.dataset import Dataset, Sample, SampleTable
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.readers.class_folders import image_sample, labelled, require_classes
from lfi_pipeline.data.readers.walk import image_paths, misfit, read_labelled_paths, require_directory, subfolders


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
        base, prefix = root / place, "" if place == "." else f"{place}/"
        if all((base / domain / (folder or "full")).is_dir() for domain in official):
            source = _official(manifest, base, prefix, folder or "full")
            break
        if all((base / domain).is_dir() for domain in plain):
            if folder is not None:
                raise misfit(
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
        raise misfit(manifest, root, trees if folder is None else f"the official {wanted}")
    samples = SampleTable(source)
    if not samples:
        raise misfit(manifest, base, "images in its class folders")
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
        found = subfolders(base / domain)
        require_classes(base / domain, found, classes)
        yield from labelled(base / domain, f"{prefix}{domain}/", found, classes, domain=domain, key_prefix=f"{domain}/")


def _official(manifest: Manifest, base: Path, prefix: str, folder: str) -> Iterator[Sample]:
    numbers = [str(label) for label in range(len(manifest.options["classes"]))]
    for domain, name in zip(manifest.options["domains"], manifest.options["official_domains"], strict=True):
        place = f"{name}/{folder}"
        found = subfolders(base / place)
        if not found or set(found) - set(numbers):  # a small split may lack a class
            require_classes(base / place, found, numbers)
        yield from labelled(base / place, f"{prefix}{place}/", found, numbers, domain=domain, key_prefix=f"{domain}/")

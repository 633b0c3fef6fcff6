"""Read VLCS: DomainBed's `<domain>/<class>/*` or the official `<DOMAIN>/{train,crossval,test,full}/{0..4}/*.jpg`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lfi_pipeline.data.expectation import misfit, require_directory
from lfi_pipeline.data.imagefolder import labelled, require_classes
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.sample import Dataset, Sample
from lfi_pipeline.data.table import SampleTable
from lfi_pipeline.data.trees import subfolders
from lfi_pipeline.errors import DatasetError


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

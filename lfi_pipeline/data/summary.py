"""A data set in words: what its manifest expects on disk, and what was read there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from lfi_pipeline.data.dataset import Dataset
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.objects import count_objects


def expected_tree(manifest: Manifest) -> tuple[str, ...]:
    """Return one line for each path pattern below the data root that the manifest's layout reads."""
    return tuple(dict.fromkeys(_TREES[manifest.layout](manifest)))


def summarize(dataset: Dataset) -> dict[str, Any]:
    """Count samples, captions, classes, annotated objects, and samples by domain where there are domains."""
    captions = labelled = 0
    domains: Counter[str] = Counter()
    for sample in dataset.samples:
        captions += len(sample.captions)
        labelled += bool(sample.labels)
        domains[sample.domain] += 1
    return {
        "samples": len(dataset),
        "labelled": labelled,
        "classes": len(dataset.classes),
        "captions": captions,
        "objects": count_objects(dataset.instances),
        "domains": {domain: count for domain, count in sorted(domains.items()) if domain},
    }


def _coco(manifest: Manifest) -> list[str]:
    return [line for split in manifest.splits.values() for line in (f"{split['images']}/*", *_annotations(split))]


def _annotations(split: Mapping[str, str]) -> tuple[str, str]:
    return split["captions"], split["instances"]


def _imagefolder(manifest: Manifest) -> list[str]:
    folders = [split["folder"] for split in manifest.splits.values()]
    return [f"{'' if folder == '.' else f'{folder}/'}<class>/**/*.jpg" for folder in folders]


def _pacs(manifest: Manifest) -> list[str]:
    lists = [split["list"] for split in manifest.splits.values() if "list" in split]
    trees = [f"{domain}/<class>/*" for domain in manifest.options["domains"]]
    return [*trees, *(name.replace("{domain}", "<domain>") for name in lists)]


def _tiny_imagenet(manifest: Manifest) -> list[str]:
    lines = [manifest.options["wnids"], manifest.options["words"]]
    for split in manifest.splits.values():
        annotated = "annotations" in split
        lines.append(f"{split['images']}/images/*.JPEG" if annotated else f"{split['images']}/<wnid>/images/*.JPEG")
        lines.extend([split["annotations"]] if annotated else [])
    return lines


def _vlcs(manifest: Manifest) -> list[str]:
    plain = [f"{domain}/<class>/*" for domain in manifest.options["domains"]]
    folders = ",".join(split.get("folder", "full") for split in manifest.splits.values())
    return [*plain, *(f"or {domain}/{{{folders}}}/<number>/*" for domain in manifest.options["official_domains"])]


def _webdataset(manifest: Manifest) -> list[str]:
    roles = [split["tars"] for split in manifest.splits.values()]
    tars = [
        line for role in roles for line in ([f"{role}/**/*.tar", f"or {role}-*.tar"] if role != "." else ["**/*.tar"])
    ]
    return [*tars, "classes.txt (optional)"]


_TREES: Mapping[str, Callable[[Manifest], list[str]]] = {
    "coco": _coco,
    "imagefolder": _imagefolder,
    "pacs": _pacs,
    "tiny-imagenet": _tiny_imagenet,
    "vlcs": _vlcs,
    "webdataset": _webdataset,
}

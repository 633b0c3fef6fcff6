"""A data set in words: what its manifest expects on disk, and what was read there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Dataset
from lfi_pipeline.data.manifest import FOLDER, Manifest, load_manifest
from lfi_pipeline.data.objects import count_objects
from lfi_pipeline.data.readers.registry import read_dataset
from lfi_pipeline.data.readers.sniff import sniff_layout
from lfi_pipeline.data.shares import DEFAULT_SHARE, TRAIN, VAL


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


def describe(path: Path | str) -> tuple[str, dict[str, Any]]:
    """Say what a folder is and what it holds: as text for people, and as JSON values.

    Raises:
        DatasetError: it is nothing that is known.
    """
    root = Path(path)
    manifest = load_manifest(FOLDER, root)
    splits: dict[str, Any] = {}
    named = list(manifest.splits) if VAL in manifest.splits else [TRAIN, VAL]
    for split in [*named, *(each for each in manifest.splits if each not in named)]:
        try:
            dataset = read_dataset(FOLDER, root, split)
        except DatasetError as error:
            splits[split] = {"error": str(error)}
            continue
        counts = summarize(dataset)
        splits[split] = counts | {
            "text": "captions" if counts["captions"] else "prompts" if counts["labelled"] else "generate",
            "names": list(dataset.classes[:_MOST_NAMES]),
            "notes": list(dataset.notes),
        }
    found: dict[str, Any] = {
        "path": str(root),
        "what": sniff_layout(root).tool,
        "layout": manifest.layout,
        "splits": splits,
        "val_share": None if VAL in manifest.splits else DEFAULT_SHARE,
    }
    return "\n".join(_told(found)), found


_MOST_NAMES = 20
_COUNTED = ("samples", "captions", "classes", "objects")


def _told(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['path']}: {found['what']}"
    for split, counts in found["splits"].items():
        if "error" in counts:
            yield f"  {split}: {counts['error']}"
            continue
        told = ", ".join(f"{counts[what]:,} {what}" for what in _COUNTED if counts[what])
        yield f"  {split}: {told}; the teacher reads {_TEXTS[counts['text']]}"
        if counts["names"]:
            more = ", ..." if counts["classes"] > len(counts["names"]) else ""
            yield f"    classes: {', '.join(counts['names'])}{more}"
        yield from (f"    note: {note}" for note in counts["notes"])
    if found["val_share"] is not None:
        yield f"  It has no validation split: val is {found['val_share']:.0%} of the images, chosen by their names."


_TEXTS = {
    "captions": "its captions",
    "prompts": "prompts with the names of each image's classes",
    "generate": "captions that it writes itself",
}


def _coco(manifest: Manifest) -> list[str]:
    return [line for split in manifest.splits.values() for line in (f"{split['images']}/*", *_annotations(split))]


def _annotations(split: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(split[role] for role in ("captions", "instances") if role in split)


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


def _images(manifest: Manifest) -> list[str]:
    return [f"{split['folder']}/**/*.jpg".removeprefix("./") for split in manifest.splits.values()]


def _parquet(manifest: Manifest) -> list[str]:
    return [f"{split['files']}*.parquet" for split in manifest.splits.values()]


def _yolo(manifest: Manifest) -> list[str]:
    lines = [f"{split[role]}/**/*{end}" for split in manifest.splits.values() for role, end in _YOLO]
    return [*lines, *([manifest.options["classes_file"]] if "classes_file" in manifest.options else [])]


_YOLO = (("images", ".jpg"), ("labels", ".txt"))
_TREES: Mapping[str, Callable[[Manifest], list[str]]] = {
    "coco": _coco,
    "imagefolder": _imagefolder,
    "images": _images,
    "pacs": _pacs,
    "parquet": _parquet,
    "tiny-imagenet": _tiny_imagenet,
    "vlcs": _vlcs,
    "webdataset": _webdataset,
    "yolo": _yolo,
}

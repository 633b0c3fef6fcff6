"""Read a split of a data set, by the reader of its layout."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from lfi_pipeline.core.errors import DatasetError, ImageReadError
from lfi_pipeline.core.hub import mirrored, url_of
from lfi_pipeline.data.dataset import (
    DEFAULT_SHARE,
    TRAIN,
    VAL,
    WHOLE,
    Dataset,
    SampleTable,
    parsed_split,
    part_of,
    split_name,
)
from lfi_pipeline.data.images import file_of, require_inside
from lfi_pipeline.data.manifest import FOLDER, Manifest, load_manifest
from lfi_pipeline.data.objects import count_objects
from lfi_pipeline.data.readers.class_folders import (
    read_imagefolder,
    read_images,
    read_pacs,
    read_tiny_imagenet,
    read_vlcs,
)
from lfi_pipeline.data.readers.coco_listing import read_coco
from lfi_pipeline.data.readers.exports import read_parquet, read_yolo
from lfi_pipeline.data.readers.sniff import sniff_layout
from lfi_pipeline.data.readers.table import read_table, table_names
from lfi_pipeline.data.readers.webdataset import read_webdataset


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
        DatasetError: its layout is none of the known ones.
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
    description: dict[str, Any] = {
        "path": str(root),
        "what": sniff_layout(root).tool,
        "layout": manifest.layout,
        "splits": splits,
        "val_share": None if VAL in manifest.splits else DEFAULT_SHARE,
    }
    return "\n".join(_told(description)), description


_MOST_NAMES = 20
_COUNTED = ("samples", "captions", "classes", "objects")


def _told(description: Mapping[str, Any]) -> Iterator[str]:
    yield f"{description['path']}: {description['what']}"
    for split, counts in description["splits"].items():
        if "error" in counts:
            yield f"  {split}: {counts['error']}"
            continue
        counted = ", ".join(f"{counts[what]:,} {what}" for what in _COUNTED if counts[what])
        yield f"  {split}: {counted}; the teacher reads {_TEXTS[counts['text']]}"
        if counts["names"]:
            more = ", ..." if counts["classes"] > len(counts["names"]) else ""
            yield f"    classes: {', '.join(counts['names'])}{more}"
        yield from (f"    note: {note}" for note in counts["notes"])
    if description["val_share"] is not None:
        yield (
            f"  It has no validation split: val is {description['val_share']:.0%} of the images, chosen by their names."
        )


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


def _table(manifest: Manifest) -> list[str]:
    options = manifest.options
    files = [*(split["table"] for split in manifest.splits.values()), *filter(None, [options.get("partition")])]
    image = f"<{options['path']}>"
    return [
        *(" or ".join(table_names(file)) for file in files),
        *(image if folder == "." else f"{folder}/{image}" for folder in options.get("images", ["."])),
    ]


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
    "table": _table,
    "tiny-imagenet": _tiny_imagenet,
    "vlcs": _vlcs,
    "webdataset": _webdataset,
    "yolo": _yolo,
}


_LOGGER = logging.getLogger(__name__)
_LOOKED_AT = 100  # images of a split whose place is looked at before anything begins

_READERS: dict[str, Callable[[Manifest, Path, str], Dataset]] = {
    "coco": read_coco,
    "imagefolder": read_imagefolder,
    "images": read_images,
    "pacs": read_pacs,
    "parquet": read_parquet,
    "table": read_table,
    "tiny-imagenet": read_tiny_imagenet,
    "vlcs": read_vlcs,
    "webdataset": read_webdataset,
    "yolo": read_yolo,
}


def read_dataset(
    name_or_path: str | Path | Manifest,
    root: Path | str | None = None,
    split: str = TRAIN,
    *,
    val_share: float = DEFAULT_SHARE,
    strict: bool = False,
) -> Dataset:
    """Read split `split` of a data set from `root`.

    A folder needs no manifest: `read_dataset("photos")` looks at what it is (`sniff_layout`). Where it has no
    validation split, `val` is a share of its images, `train` the others and `all` both. Of any data set `val-0.2` is a
    fifth of its training images, or of `all` where it has none, and `train-0.2` the others.

    Args:
        name_or_path: name of a shipped manifest, path of the user's own `.toml`, the name of a manifest that lies in
            `root` as `NAME.toml`, path of a folder, `folder` for what `root` is, or a manifest.
        root: the data root; by default the folder that is named. Of `s3://bucket/folder` and the like (whatever fsspec
            reads), the tars are copied to the cache folder first.
        split: name of the split.
        val_share: of a folder without a validation split, the share to validate on; other shares than 0.1 are part of
            the split's name, so that later stages read the same images.
        strict: refuse files from which something has to be left out (`Dataset.notes`).

    Raises:
        UnknownNameError: unknown data set or split; lists the choices.
        DatasetError: `root` cannot be read, or is not laid out as the manifest says (shows both), or two samples share
            a key.
    """
    if root is not None and (url := url_of(root)):
        root = mirrored(url)
    elif root is None and isinstance(name_or_path, str | Path) and (url := url_of(name_or_path)):
        name_or_path, root = FOLDER, mirrored(url)
    if root is None:
        named = name_or_path.name if isinstance(name_or_path, Manifest) else name_or_path
        if isinstance(name_or_path, Manifest) or not Path(named).is_dir():
            raise DatasetError(f"A data set that is not a folder needs its data root; got {str(named)!r} alone.")
        name_or_path, root = FOLDER, named
    root = Path(root)
    manifest = load_manifest(name_or_path, root)
    try:
        dataset = _read(manifest, root, split, val_share)
        if strict and dataset.notes:
            raise DatasetError(f"{'; '.join(dataset.notes)}. Mend the files, or read them without strict.")
    except OSError as error:  # permissions, a network drive that went away, a name that is too long
        raise DatasetError(f"Data root {root} cannot be read: {error}.") from error
    _require_inside(dataset)
    repeated = dataset.samples.repeated_keys() if isinstance(dataset.samples, SampleTable) else []
    if repeated:
        raise DatasetError(
            f"{root}: samples of {manifest.name}, {split}, must have names of their own; repeated: "
            f"{', '.join(repeated)}. Rename or remove one of each."
        )
    dataset = replace(dataset, notes=(*dataset.notes, *_without_captions(dataset)))
    for note in dataset.notes:
        _LOGGER.warning("%s, %s: %s", dataset.name, dataset.split, note)
    return dataset


def _read(manifest: Manifest, root: Path, split: str, val_share: float) -> Dataset:
    read = _READERS[manifest.layout]
    named, share = parsed_split(split)
    has_parts = manifest.name == FOLDER and VAL not in manifest.splits and named in (TRAIN, VAL, WHOLE)
    if not has_parts and named == split:
        return read(manifest, root, split)
    if val_share != DEFAULT_SHARE and share == DEFAULT_SHARE:
        share = val_share
    source = next((each for each in (TRAIN, WHOLE) if each in manifest.splits), next(iter(manifest.splits)))
    whole, name = read(manifest, root, source), split_name(named, share)
    if name == WHOLE:
        return replace(whole, split=WHOLE)
    return replace(part_of(whole, named, share), split=name)


def _require_inside(dataset: Dataset) -> None:
    """Check some images, evenly spaced, for links that lead out of the data root; each is checked again when read.

    Raises:
        DatasetError: an image lies elsewhere.
    """
    step = max(1, len(dataset) // _LOOKED_AT)
    for place in range(0, len(dataset), step):
        path = dataset.samples[place].path
        try:
            require_inside(dataset.root, file_of(path))
        except ImageReadError as error:
            raise DatasetError(f"Images of {dataset.name}, {dataset.split}: {error}.") from error


def _without_captions(dataset: Dataset) -> list[str]:
    """Return a note where only some images have a caption, or where no image has a caption or a label."""
    if not isinstance(dataset.samples, SampleTable) or not len(dataset):
        return []
    lengths = {name: pc.list_value_length(dataset.samples.column(name)) for name in ("captions", "labels")}
    bare, unlabelled = (pc.sum(pc.equal(each, 0)).as_py() for each in lengths.values())
    if bare == len(dataset):
        return [f"none of {bare} images has a caption or a label"] if unlabelled == len(dataset) else []
    return [f"{bare} of {len(dataset)} images have no caption"] if bare else []

"""Read the COCO layout: an image folder, `captions_*.json` and `instances_*.json`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Dataset, Instance, Sample, SampleTable
from lfi_pipeline.data.manifest import Manifest

Record = dict[str, Any]


def read_coco(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split; images are listed in order of their id, files are not opened.

    Raises:
        DatasetError: a file of the layout is missing, is not JSON of COCO's form, or captions and images do not
            belong together.
    """
    files = manifest.files(split)
    _require_layout(manifest, root, files)
    captions_file, instances_file = root / files["captions"], root / files["instances"]
    captions, instances = _load(captions_file), _load(instances_file)
    images = _by_id(instances, "images", instances_file)
    _require_same_images(images, captions, captions_file, instances_file)

    categories = sorted(_by_id(instances, "categories", instances_file).values(), key=lambda c: c["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    texts: dict[int, list[str]] = defaultdict(list)
    for annotation in sorted(_records(captions, "annotations", captions_file, _CAPTION), key=lambda a: a["id"]):
        texts[annotation["image_id"]].append(annotation["caption"])
    objects: dict[int, list[Instance]] = defaultdict(list)
    for annotation in _records(instances, "annotations", instances_file, _OBJECT):
        if annotation.get("iscrowd"):
            continue  # COCO marks regions of many objects as crowd; they belong to no single object
        if annotation["category_id"] not in label_of:
            raise DatasetError(f"{instances_file}: annotation of a category that it does not list: {annotation}.")
        left, top, width, height = annotation["bbox"]
        objects[annotation["image_id"]].append(
            Instance(
                label=label_of[annotation["category_id"]],
                bbox_xywh=(left, top, width, height),
                segmentation=annotation["segmentation"],
            )
        )
    domain_field = manifest.options.get("domain_field", "")
    samples = SampleTable(
        Sample(
            key=Path(image["file_name"]).stem,
            path=f"{files['images']}/{image['file_name']}",
            captions=tuple(texts[image_id]),
            labels=tuple(sorted({instance.label for instance in objects[image_id]})),
            domain=str(image.get(domain_field, "")),
            height=image["height"],
            width=image["width"],
        )
        for image_id, image in sorted(images.items())
    )
    by_key = {Path(image["file_name"]).stem: tuple(objects[image_id]) for image_id, image in images.items()}
    if len(by_key) != len(samples):
        raise DatasetError(f"{instances_file} must name each image file once; some file names repeat.")
    classes = tuple(category["name"] for category in categories)
    return Dataset(
        name=manifest.name,
        root=root,
        split=split,
        classes=classes,
        samples=samples,
        instances=by_key,
        prompts=manifest.prompts,
    )


def read_instances(path: Path) -> tuple[dict[int, Record], list[Record], list[Record]]:
    """Return the images by id, the categories in order of id and the annotations of one `instances_*.json`.

    Raises:
        DatasetError: not a JSON file of COCO's form, or an annotation of an image or category that it does not list.
    """
    content = _load(path)
    images, categories = _by_id(content, "images", path), _by_id(content, "categories", path)
    annotations = _records(content, "annotations", path, _OBJECT)
    for annotation in annotations:
        if annotation["category_id"] not in categories or annotation["image_id"] not in images:
            raise DatasetError(f"{path}: annotation of a category or image that it does not list: {annotation}.")
    return images, [categories[number] for number in sorted(categories)], annotations


def _require_layout(manifest: Manifest, root: Path, files: Mapping[str, str]) -> None:
    if not root.is_dir():
        raise DatasetError(f"Data root {root} must be a directory. To obtain {manifest.name}: {manifest.obtain}.")
    missing = [path for path in files.values() if not (root / path).exists()]
    if missing:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:12]) or "nothing"
        raise DatasetError(
            f"Data root {root} must hold {', '.join(files.values())} (layout of {manifest.name}); "
            f"missing: {', '.join(missing)}; found there: {found}. To obtain it: {manifest.obtain}."
        )
    if next((root / files["images"]).iterdir(), None) is None:
        raise DatasetError(f"Image folder {root / files['images']} is empty. To obtain it: {manifest.obtain}.")


def _require_same_images(
    images: Mapping[int, Record], captions: Record, captions_file: Path, instances_file: Path
) -> None:
    named = {image_id: record["file_name"] for image_id, record in images.items()}
    captioned = {
        image_id: record["file_name"] for image_id, record in _by_id(captions, "images", captions_file).items()
    }
    for image_id in sorted(named.keys() | captioned.keys()):
        if named.get(image_id) != captioned.get(image_id):
            raise DatasetError(
                f"{captions_file} and {instances_file} must list the same images; image id {image_id} is "
                f"{captioned.get(image_id, 'absent')} in the first and {named.get(image_id, 'absent')} in the "
                "second. Use the two files of one split and release."
            )
    strays = {a["image_id"] for a in _records(captions, "annotations", captions_file, _CAPTION)} - named.keys()
    if strays:
        raise DatasetError(f"{captions_file} has captions for image ids that it does not list: {sorted(strays)[:5]}.")


def _load(path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5000 digits, 10000 brackets
        raise DatasetError(f"{path} must be a COCO annotation file in JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} must be a JSON object with images and annotations, got a {type(content).__name__}.")
    return content


_REQUIRED = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}
_CAPTION = ("id", "image_id", "caption")
_OBJECT = ("image_id", "category_id", "bbox", "segmentation")


def _records(content: Record, name: str, path: Path, required: Sequence[str]) -> list[Record]:
    records = content.get(name)
    if not isinstance(records, list):
        raise DatasetError(f"{path} must hold a list {name!r}; found keys {sorted(content)}.")
    fits = [(field, _FITS[field]) for field in required]
    for record in records:
        if not isinstance(record, dict) or not record.keys() >= set(required):
            raise DatasetError(f"{path}: every entry of {name!r} must have {', '.join(required)}; got {record}.")
        for field, fit in fits:
            if not fit(record[field]):
                raise DatasetError(f"{path}: {field!r} of an entry of {name!r} is of a wrong form: {record[field]!r}.")
    return records


def _is_integer(value: object) -> bool:
    return type(value) is int and abs(value) < 1 << 63  # JSON's true is no number


def _is_length(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(number, int | float) and abs(number) < 1e9 for number in value)
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_FITS: Mapping[str, Callable[[object], bool]] = {
    "id": _is_integer,
    "image_id": _is_integer,
    "category_id": _is_integer,
    "height": _is_length,
    "width": _is_length,
    "file_name": lambda value: isinstance(value, str) and value != "",
    "caption": _is_text,
    "name": _is_text,
    "bbox": _is_box,
    "segmentation": lambda value: isinstance(value, list | dict),
}


def _by_id(content: Record, name: str, path: Path) -> dict[int, Record]:
    records = _records(content, name, path, _REQUIRED[name])
    found = {record["id"]: record for record in records}
    if len(found) != len(records):
        raise DatasetError(f"{path}: every entry of {name!r} must have an id of its own; some ids repeat.")
    return found

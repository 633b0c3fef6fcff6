"""Read the COCO layout: an image folder, and files of captions, of instances, or of both."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import SAMPLES, Dataset, Sample, SampleTable
from lfi_pipeline.data.listing_cache import Parts, kept_listing
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.objects import SEGMENTS, InstancesByKey, ObjectTable
from lfi_pipeline.data.readers.coco_columns import ById, Objects, Texts
from lfi_pipeline.data.readers.coco_json import (
    Caption,
    Category,
    Faults,
    Ids,
    Image,
    Object,
    Records,
    caption_of,
    category_of,
    image_of,
    object_of,
    stream_lists,
)
from lfi_pipeline.data.readers.walk import prefix_of, require_directory

_MOST_ALONE = 0.05  # share of the images
_VERSION = 1  # of what is kept


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoListing:
    """One split.

    Attributes:
        samples: one for each image, in order of id.
        ids: int64, of the images; ids that are no numbers are numbered from below.
        classes: names of the categories in order of id, each once.
        category_ids: of the classes; of several with one name, the first.
        objects: of the images, crowds as well; labels index `classes`.
        notes: what was left out, a line for each reason.
    """

    samples: SampleTable
    ids: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    objects: ObjectTable
    notes: tuple[str, ...]


def read_listing(instances: Path | None, captions: Path | None, *, folder: str, domain_field: str = "") -> CocoListing:
    """Read the annotation files of one split; at least one must be given.

    Large files are parsed once, and then come from the cache of listings.

    Args:
        instances: file with images, categories and objects.
        captions: file with images and captions.
        folder: of the images, POSIX path below the data root, or `.`.
        domain_field: field of an image's record that names its domain.

    Raises:
        DatasetError: a file is not JSON of COCO's form, or the two do not belong together.
    """
    files = [path for path in (instances, captions) if path is not None]
    prefix = prefix_of(folder)
    settings = {
        "version": _VERSION,
        "prefix": prefix,
        "domain_field": domain_field,
        "names": [path.name if path is not None else None for path in (instances, captions)],
    }
    try:
        parts, description = kept_listing(
            files, settings, lambda parts: _Parser(instances, captions, prefix, domain_field).write(parts)
        )
    except OSError as error:
        raise DatasetError(f"{error.filename or files[0]}: {error.strerror or error}.") from error
    samples = SampleTable.of_batches(parts.batches("samples"))
    (rows,) = parts.batches("objects")
    (ids,) = parts.batches("ids")
    return CocoListing(
        samples=samples,
        ids=ids.column(0).to_numpy(),
        classes=tuple(description["classes"]),
        category_ids=tuple(description["category_ids"]),
        objects=ObjectTable(rows, parts.batches("segments"), len(samples)),
        notes=tuple(description["notes"]),
    )


class _Parser:
    """Parses the annotation files of one split and writes the listing's parts."""

    def __init__(self, instances: Path | None, captions: Path | None, prefix: str, domain_field: str) -> None:
        self.instances, self.captions, self.prefix, self.domain_field = instances, captions, prefix, domain_field
        self.ids = Ids()

    def write(self, parts: Parts) -> Mapping[str, Any]:
        faults = [Faults(path) for path in (self.instances, self.captions) if path is not None]
        images: dict[int, Image] = {}
        categories: list[Category] = []
        with parts.writer("segments", SEGMENTS) as writer:
            objects = Objects(writer, faults[0])
            if self.instances is not None:
                images, categories = self._read_instances(self.instances, faults[0], objects)
        texts = Texts()
        if self.captions is not None:
            captioned, texts = self._read_captions(self.captions, faults[-1])
            images = _united(images, captioned, self.instances, self.captions, faults[0])
        ordered = _each_file_once([images[number] for number in sorted(images)], faults[0])
        ids = np.array([image.id for image in ordered], np.int64)
        first: dict[str, int] = {}
        for category in categories:
            first.setdefault(category.name, category.id)
        classes = tuple(first)
        rows = objects.rows(ordered, ids, categories, classes)
        captions = texts.by_image(ids, faults[-1])
        self._write_samples(parts, ordered, captions, rows)
        for name, column in (("objects", rows), ("ids", pa.RecordBatch.from_pydict({"id": pa.array(ids, pa.int64())}))):
            with parts.writer(name, column.schema) as writer:
                writer.write_batch(column)
        return {
            "classes": classes,
            "category_ids": list(first.values()),
            "notes": [line for each in faults for line in each.lines()],
        }

    def _read_instances(self, path: Path, faults: Faults, objects: Objects) -> tuple[dict[int, Image], list[Category]]:
        images, categories = ById[Image](faults, "images"), ById[Category](faults, "categories")
        records_of: dict[str, Records[Any]] = {
            "images": self._images(faults),
            "categories": Records(Category, partial(category_of, ids=self.ids), faults),
            "annotations": Records(Object, partial(object_of, ids=self.ids), faults),
        }
        met: set[str] = set()
        sinks = {"images": images, "categories": categories, "annotations": objects}
        for name, text in stream_lists(path, frozenset(records_of)):
            met.add(name)
            sinks[name].add(records_of[name].read(text))  # type: ignore[attr-defined]
        _require_lists(path, met, tuple(records_of))
        return images.found, [categories.found[number] for number in sorted(categories.found)]

    def _read_captions(self, path: Path, faults: Faults) -> tuple[dict[int, Image], Texts]:
        images, texts = ById[Image](faults, "images"), Texts()
        records_of: dict[str, Records[Any]] = {
            "images": self._images(faults),
            "annotations": Records(Caption, partial(caption_of, ids=self.ids), faults),
        }
        met: set[str] = set()
        for name, text in stream_lists(path, frozenset(records_of)):
            met.add(name)
            records: Any = records_of[name].read(text)
            (images if name == "images" else texts).add(records)
        _require_lists(path, met, tuple(records_of))
        return images.found, texts

    def _images(self, faults: Faults) -> Records[Image]:
        mend = partial(image_of, ids=self.ids, domain_field=self.domain_field)
        if not self.domain_field:
            return Records(Image, mend, faults)
        named = msgspec.defstruct("Image", [("domain", str, "")], bases=(Image,), rename={"domain": self.domain_field})
        return Records(named, mend, faults)  # type: ignore[arg-type]

    def _write_samples(
        self, parts: Parts, images: Sequence[Image], captions: Iterator[tuple[str, ...]], rows: Any
    ) -> None:
        keys = _keys([image.file_name for image in images])
        labels = _labels_by_image(rows, len(images))
        samples = SampleTable(
            Sample(
                key=key,
                path=self.prefix + image.file_name,
                captions=texts,
                labels=image_labels,
                domain=image.domain,
                height=image.height,
                width=image.width,
            )
            for image, key, texts, image_labels in zip(images, keys, captions, labels, strict=True)
        )
        batches = samples.batches
        with parts.writer("samples", SAMPLES) as writer:
            for batch in batches:
                writer.write_batch(batch)


def _require_lists(path: Path, met: set[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in met]
    if missing:
        raise DatasetError(
            f"{path} must be a COCO file and list {', '.join(map(repr, wanted))}; it has no list "
            f"{', '.join(map(repr, missing))}."
        )


def _united(
    images: dict[int, Image], captioned: dict[int, Image], instances: Path | None, captions: Path, faults: Faults
) -> dict[int, Image]:
    """Return the images of both files.

    Raises:
        DatasetError: an id is of one image here and another there, or many are in one file alone.
    """
    if instances is None:
        return captioned
    for number in sorted(images.keys() & captioned.keys()):
        names = captioned[number].file_name, images[number].file_name
        if names[0] != names[1] and PurePosixPath(names[0]).name != PurePosixPath(names[1]).name:
            raise DatasetError(
                f"{captions} and {instances} must list the same images; image id {number} is {names[0]} in the first "
                f"and {names[1]} in the second. Use the two files of one split and release."
            )
    alone = sorted(images.keys() ^ captioned.keys())
    if len(alone) > max(1, _MOST_ALONE * len(images | captioned)):  # not a bad record, but files of two splits
        number = alone[0]
        both = captioned.get(number), images.get(number)
        file_names = [each.file_name if each is not None else "absent" for each in both]
        raise DatasetError(
            f"{captions} and {instances} must list the same images; {len(alone)} are in one of them alone. Image id "
            f"{number} is {file_names[0]} in the first and {file_names[1]} in the second. Use the two files of one "
            "split and release."
        )
    for number in alone:
        faults.add(f"images are in one of {instances.name} and {captions.name} alone", f"id {number}")
    return captioned | images


def _each_file_once(images: Sequence[Image], faults: Faults) -> list[Image]:
    by_name: dict[str, Image] = {}
    for image in images:
        if by_name.setdefault(image.file_name, image) is not image:
            faults.add("images left out, whose file an earlier one names", f"{image.file_name}, id {image.id}")
    return list(by_name.values())


def _keys(names: Sequence[str]) -> list[str]:
    """Return a key for each file: its name alone where no other folder has it, else its path; without its suffix."""
    paths = [name.removesuffix(PurePosixPath(name).suffix) for name in names]
    stems = [path.rpartition("/")[2] for path in paths]
    counts = Counter(stems)
    keys = [stem if counts[stem] == 1 else path for stem, path in zip(stems, paths, strict=True)]
    taken = Counter(keys)
    return [key if taken[key] == 1 else name for key, name in zip(keys, names, strict=True)]


def _labels_by_image(rows: Any, images: int) -> Iterator[tuple[int, ...]]:
    """Yield the classes of each image's objects, sorted; crowds have none."""
    whole = ~rows.column("crowd").to_numpy(zero_copy_only=False)
    places, labels = (rows.column(name).to_numpy()[whole].astype(np.int64) for name in ("image", "label"))
    many = int(labels.max(initial=0)) + 1
    pairs = np.sort(places * many + labels)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    starts = np.searchsorted(pairs, np.arange(images + 1) * many).tolist()
    sorted_labels = (pairs % many).tolist()
    for start, end in itertools.pairwise(starts):
        yield tuple(sorted_labels[start:end])


def read_coco(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split; images are listed in order of their id, files are not opened.

    A record that cannot be understood is left out; `Dataset.notes` says how many were.

    Raises:
        DatasetError: a file of the layout is missing, is not JSON of COCO's form, or captions and images do not
            belong together.
    """
    files = manifest.files(split)
    _require_layout(manifest, root, files)
    captions, instances = files.get("captions"), files.get("instances")
    listing = read_listing(
        root / instances if instances is not None else None,
        root / captions if captions is not None else None,
        folder=files["images"],
        domain_field=manifest.options.get("domain_field", ""),
    )
    return Dataset(
        name=manifest.name,
        root=root,
        split=split,
        classes=listing.classes,
        samples=listing.samples,
        instances=InstancesByKey(listing.objects, listing.samples.column("key")) if len(listing.objects) else {},
        prompts=manifest.prompts,
        notes=listing.notes,
    )


def _require_layout(manifest: Manifest, root: Path, files: Mapping[str, str]) -> None:
    require_directory(manifest, root)
    missing = [path for path in files.values() if not (root / path).exists()]
    if missing:
        contents = ", ".join(sorted(entry.name for entry in root.iterdir())[:12]) or "nothing"
        raise DatasetError(
            f"Data root {root} must hold {', '.join(files.values())} (layout of {manifest.name}); "
            f"missing: {', '.join(missing)}; found there: {contents}. {manifest.how_to_obtain}".rstrip()
        )
    if next((root / files["images"]).iterdir(), None) is None:
        raise DatasetError(f"Image folder {root / files['images']} is empty. {manifest.how_to_obtain}".rstrip())

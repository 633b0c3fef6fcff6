"""Images, boxes and masks of any directory in COCO's layout, for fine-tuning and for scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Instance
from lfi_pipeline.data.images import read_image
from lfi_pipeline.data.objects import ObjectTable
from lfi_pipeline.data.readers.coco_listing import read_listing

Target = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoSplit:
    """One split.

    Attributes:
        file: the annotation file.
        folder: where the images lie.
        images: records of COCO's form, in order of id.
        categories: records in order of id; label 0 of the detector is the background, label i + 1 is category i.
        annotations: image id -> records, crowds as well; `segmentation` is None where there is none that fits.
        usable: image id -> objects to train on: no crowds, with a mask, boxes cut at the image's edge and not empty.
        objects: how many are usable.
        dropped: how many objects are neither crowds nor usable.
        notes: what was left out of the file, a line for each reason.
    """

    file: Path
    folder: Path
    images: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]
    annotations: Mapping[int, Sequence[Mapping[str, Any]]]
    usable: Mapping[int, Sequence[Instance]]
    objects: int
    dropped: int
    notes: tuple[str, ...] = ()


def read_split(file: Path, folder: Path | None = None) -> CocoSplit:
    """Read one `instances_*.json`; images are looked for, not opened.

    Args:
        file: the annotation file.
        folder: of the images; None looks for it where COCO and its kin have it.

    Raises:
        DatasetError: not a file of COCO's form, nothing in it, or no folder with its images.
    """
    listing = read_listing(file, None, folder=".")
    if not listing.samples or not listing.classes:
        raise DatasetError(
            f"{file} must list images and categories; it has {len(listing.samples)} and {len(listing.classes)}."
        )
    ids = listing.ids.tolist()
    images = [
        {"id": number, "file_name": sample.path, "height": sample.height, "width": sample.width}
        for number, sample in zip(ids, listing.samples, strict=True)
    ]
    objects = listing.objects
    height, width = (listing.samples.column(name).to_numpy()[objects.column("image")] for name in ("height", "width"))
    left, top, across, down = (objects.column(name) for name in ("left", "top", "width", "height"))
    inside = (np.minimum(left + across, width) > np.maximum(left, 0)) & (
        np.minimum(top + down, height) > np.maximum(top, 0)
    )
    whole = ~objects.column("crowd")
    chosen = whole & inside & (objects.column("segment") >= 0)
    usable = [ids[place] for place in np.unique(objects.column("image")[chosen]).tolist()]
    places = {number: place for place, number in enumerate(ids)}
    return CocoSplit(
        file=file,
        folder=folder or _folder(file, str(images[0]["file_name"])),
        images=images,
        categories=[
            {"id": number, "name": name} for number, name in zip(listing.category_ids, listing.classes, strict=True)
        ],
        annotations=_PerImage(places, lambda place: _annotations(objects, place, ids[place], listing.category_ids)),
        usable=_PerImage(
            {number: places[number] for number in usable},
            lambda place: _usable(objects, place, images[place]["height"], images[place]["width"]),
        ),
        objects=int(chosen.sum()),
        dropped=int((whole & ~chosen).sum()),
        notes=listing.notes,
    )


class _PerImage(Mapping[int, Sequence[T]]):
    """Mapping of image id -> sequence, which is computed from the image's objects at each access."""

    def __init__(self, places: Mapping[int, int], make: Callable[[int], Sequence[T]]) -> None:
        self._places, self._make = places, make

    def __getitem__(self, image: int) -> Sequence[T]:
        return self._make(self._places[image])

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Changed(Mapping[int, Sequence[T]]):
    """Another mapping's values, each changed as it is read."""

    def __init__(self, source: Mapping[int, Sequence[T]], change: Callable[[T], T]) -> None:
        self._source, self._change = source, change

    def __getitem__(self, image: int) -> Sequence[T]:
        return [self._change(each) for each in self._source[image]]

    def __iter__(self) -> Iterator[int]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


def _annotations(objects: ObjectTable, place: int, image: int, categories: Sequence[int]) -> list[Mapping[str, Any]]:
    return [
        {
            "image_id": image,
            "category_id": categories[each.instance.label],
            "bbox": list(each.instance.bbox_xywh),
            "segmentation": each.instance.segmentation,
            "area": each.area,
            "iscrowd": int(each.crowd),
        }
        for each in objects.of_image(place)
    ]


def _usable(objects: ObjectTable, place: int, height: int, width: int) -> list[Instance]:
    whole = [each.instance for each in objects.of_image(place) if not each.crowd]
    cut = [replace(each, bbox_xywh=_inside(each.bbox_xywh, height, width)) for each in whole]
    return [each for each in cut if min(each.bbox_xywh[2:]) > 0 and each.segmentation is not None]


def one_category(split: CocoSplit) -> CocoSplit:
    """Return `split` with all objects in one category `object`, to score localisation without classes."""
    renamed = _Changed(split.annotations, lambda each: {**each, "category_id": 1})
    usable = _Changed(split.usable, lambda each: replace(each, label=0))
    return replace(split, categories=[{"id": 1, "name": "object"}], annotations=renamed, usable=usable)


def find_instances(root: Path, split: str) -> Path:
    """Return the annotation file of `split` below `root`: `instances_SPLIT*.json`, the year of COCO's may be left out.

    Raises:
        DatasetError: there is none, or more than one.
    """
    places = [root / "annotations", root]
    exact = [place / f"instances_{split}.json" for place in places]
    matches = [path for path in exact if path.is_file()][:1]
    matches = matches or sorted(path for place in places for path in place.glob(f"instances_{split}*.json"))
    if len(matches) != 1:
        every = sorted(path.name for place in places for path in place.glob("instances_*.json"))
        raise DatasetError(
            f"{root} must hold one annotations/instances_{split}*.json; it holds {', '.join(every) or 'none'}. Give "
            "a directory in COCO's layout, and the name of the split as its file has it, such as train2017."
        )
    return matches[0]


class DetectionImages(TorchDataset[tuple[Tensor, Target]]):
    """Images of a split with what torchvision's detectors are trained on.

    An item is the image as fp32 [3, H, W] in [0, 1], and boxes fp32 [N, 4] (left, top, right, bottom, in pixels),
    labels int64 [N] from 1, masks uint8 [N, H, W].

    Args:
        split: images and their objects.
        draws: (position in `split.images`, mirrored left to right) for each item.
        objects: False leaves them out, for scoring.
    """

    def __init__(self, split: CocoSplit, draws: Sequence[tuple[int, bool]], *, objects: bool = True) -> None:
        self.split, self.draws, self.objects = split, draws, objects

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> tuple[Tensor, Target]:
        """Raises ImageReadError, and DatasetError where an image is not of the size that its record tells."""
        position, mirrored = self.draws[number]
        record = self.split.images[position]
        image, _, _ = read_image(self.split.folder, str(record["file_name"]))
        height, width = int(record["height"]), int(record["width"])
        if image.size != (width, height):
            raise DatasetError(
                f"{self.split.folder / str(record['file_name'])} must be {width} by {height} pixels, as "
                f"{self.split.file} says; it is {image.size[0]} by {image.size[1]}. Use images and annotations of one "
                "release."
            )
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        objects = self.split.usable.get(record["id"], ()) if self.objects else ()
        boxes, masks = _boxes(objects), _masks(objects, height, width)
        if mirrored:
            pixels, masks = pixels.flip(-1), masks.flip(-1)
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        labels = torch.tensor([each.label + 1 for each in objects], dtype=torch.int64)
        return pixels, {"boxes": boxes, "labels": labels, "masks": masks}


def _inside(box: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[0] + box[2], width), min(box[1] + box[3], height)
    return left, top, right - left, bottom - top


def _boxes(objects: Sequence[Instance]) -> Tensor:
    boxes = torch.tensor([each.bbox_xywh for each in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _masks(objects: Sequence[Instance], height: int, width: int) -> Tensor:
    masks = np.zeros((len(objects), height, width), np.uint8)
    for number, each in enumerate(objects):
        masks[number] = each.mask(height, width)
    return torch.from_numpy(masks)


def _folder(file: Path, image: str) -> Path:
    """Return the folder that holds `image`: named as the split, or `images`, beside or above the annotation file."""
    split = file.stem.removeprefix("instances_")
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    choices = [root / split, root / "images" / split, root / "images", root]
    for choice in choices:
        if (choice / image).is_file():
            return choice
    raise DatasetError(
        f"The images of {file} must lie in one of {', '.join(map(str, choices))}; none of them has {image}."
    )

"""Images, boxes and masks of any directory in COCO's layout, for fine-tuning and for scoring."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Instance
from lfi_pipeline.data.images import read_image
from lfi_pipeline.data.readers.coco import read_instances

Target = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoSplit:
    """One split.

    Attributes:
        file: the annotation file.
        folder: where the images lie.
        images: records of COCO's form, in order of id.
        categories: records in order of id; label 0 of the detector is the background, label i + 1 is category i.
        annotations: image id -> records, crowds as well.
        usable: image id -> objects to train on: no crowds, boxes cut at the image's edge and not empty.
        dropped: how many boxes were empty.
    """

    file: Path
    folder: Path
    images: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]
    annotations: Mapping[int, Sequence[Mapping[str, Any]]]
    usable: Mapping[int, Sequence[Instance]]
    dropped: int


def read_split(file: Path, folder: Path | None = None) -> CocoSplit:
    """Read one `instances_*.json`; images are looked for, not opened.

    Args:
        file: the annotation file.
        folder: of the images; None looks for it where COCO and its kin have it.

    Raises:
        DatasetError: not a file of COCO's form, nothing in it, or no folder with its images.
    """
    images, categories, records = read_instances(file)
    if not images or not categories:
        raise DatasetError(f"{file} must list images and categories; it has {len(images)} and {len(categories)}.")
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        annotations[record["image_id"]].append(record)
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    usable: dict[int, list[Instance]] = {}
    dropped = 0
    for image_id, found in annotations.items():
        height, width = images[image_id]["height"], images[image_id]["width"]
        whole = [record for record in found if not record.get("iscrowd")]
        boxes = [_inside(record["bbox"], height, width) for record in whole]
        objects = [
            Instance(label=label_of[record["category_id"]], bbox_xywh=box, segmentation=record["segmentation"])
            for record, box in zip(whole, boxes, strict=True)
            if box[2] > 0 and box[3] > 0 and record["segmentation"]
        ]
        dropped += len(whole) - len(objects)
        if objects:
            usable[image_id] = objects
    ordered = [images[image_id] for image_id in sorted(images)]
    return CocoSplit(
        file=file,
        folder=folder or _folder(file, str(ordered[0]["file_name"])),
        images=ordered,
        categories=categories,
        annotations=annotations,
        usable=usable,
        dropped=dropped,
    )


def one_category(split: CocoSplit) -> CocoSplit:
    """Return `split` with every object of the one category `object`: what finding is worth without naming."""
    renamed = {image: [{**each, "category_id": 1} for each in of] for image, of in split.annotations.items()}
    usable = {image: [replace(each, label=0) for each in of] for image, of in split.usable.items()}
    return replace(split, categories=[{"id": 1, "name": "object"}], annotations=renamed, usable=usable)


def find_instances(root: Path, split: str) -> Path:
    """Return the annotation file of `split` below `root`: `instances_SPLIT*.json`, the year of COCO's may be left out.

    Raises:
        DatasetError: there is none, or more than one.
    """
    places = [root / "annotations", root]
    exact = [place / f"instances_{split}.json" for place in places]
    found = [path for path in exact if path.is_file()][:1]
    found = found or sorted(path for place in places for path in place.glob(f"instances_{split}*.json"))
    if len(found) != 1:
        every = sorted(path.name for place in places for path in place.glob("instances_*.json"))
        raise DatasetError(
            f"{root} must hold one annotations/instances_{split}*.json; it holds {', '.join(every) or 'none'}. Give "
            "a directory in COCO's layout, and the name of the split as its file has it, such as train2017."
        )
    return found[0]


class DetectionImages(TorchDataset[tuple[Tensor, Target]]):
    """Images of a split with what torchvision's detectors are trained on.

    An item is the image as fp32 [3, H, W] in [0, 1], and boxes fp32 [N, 4] (left, top, right, bottom, in pixels),
    labels int64 [N] from 1, masks uint8 [N, H, W].

    Args:
        split: as above.
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


def training_draws(split: CocoSplit, count: int, seed: int) -> list[tuple[int, bool]]:
    """Return `count` draws from the images that have objects: permutation after permutation, half of them mirrored.

    Raises:
        DatasetError: no image has objects.
    """
    positions = [number for number, record in enumerate(split.images) if record["id"] in split.usable]
    if not positions:
        raise DatasetError(f"{split.file} must have objects with boxes to train on; it has none.")
    generator = np.random.default_rng(seed)
    rounds = -(-count // len(positions))
    order: npt.NDArray[np.int64] = np.concatenate([generator.permutation(positions) for _ in range(rounds)])[:count]
    return list(zip(order.tolist(), (generator.random(count) < 0.5).tolist(), strict=True))


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

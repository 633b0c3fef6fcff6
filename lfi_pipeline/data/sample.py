"""What a data set is to the rest of the library: an ordered list of samples with paths, captions and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One annotated object.

    Attributes:
        label: index into `Dataset.classes`.
        bbox_xywh: box in pixels, COCO order (left, top, width, height).
        segmentation: COCO RLE or polygons, as the annotation file has it.
    """

    label: int
    bbox_xywh: tuple[float, float, float, float]
    segmentation: object

    def mask(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """Rasterise the segmentation to a boolean mask [height, width]."""
        from pycocotools import mask as coco_mask

        segmentation = self.segmentation
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
            segmentation = coco_mask.frPyObjects(segmentation, height, width)
        decoded: npt.NDArray[np.uint8] = coco_mask.decode(segmentation)
        return decoded.astype(bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image and what is known of it.

    Attributes:
        key: unique and stable within the split.
        path: POSIX path below the data root.
        captions: captions in file order; may be empty.
        labels: sorted indices into `Dataset.classes`.
        domain: visual domain, "" where the data set has none.
        height: pixels, as annotated; 0 where only the image itself tells.
        width: pixels, as annotated, or 0.
    """

    key: str
    path: str
    captions: tuple[str, ...]
    labels: tuple[int, ...]
    domain: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One split of a data set, read from disk (annotations in memory, images left where they are).

    Attributes:
        root: the data root; paths of samples are relative to it.
        classes: class names; empty for unlabelled images.
        samples: in a fixed order; a `SampleTable` when read from disk.
        instances: sample key -> annotated objects, where the data set has masks.
        prompts: templates with one `{}` for a class name.
    """

    name: str
    root: Path
    split: str
    classes: tuple[str, ...]
    samples: Sequence[Sample]
    instances: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

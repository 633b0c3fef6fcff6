"""A detector's answers in COCO's results format, and its box AP and mask AP, computed by faster-coco-eval.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, as its evaluation code defines them: AP is the mean
over categories and over the IoU thresholds 0.50, 0.55, ..., 0.95 of the precision at 101 recalls; at most 100
detections an image; crowds are neither hits nor misses; small is below 32^2 pixels, large above 96^2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader

from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.data.dataset import Instance
from lfi_pipeline.evaluation.detection.coco_data import CocoSplit, DetectionImages

Detection = dict[str, Any]
"""A record of COCO's results format: image_id, category_id, score, bbox (left, top, width, height), segmentation."""
KINDS = {"box": "bbox", "mask": "segm"}
_READ = {"box": "bbox", "mask": "segmentation"}  # the one field that each kind is scored by
_AREAS = ("", "_small", "_medium", "_large")  # in the order of COCO's area ranges
_MOST = (1, 10, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoScores:
    """What COCO's evaluation prints, as shares; None where there is no object to find.

    Attributes:
        overall: ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100, ar_small, ar_medium, ar_large.
        per_class: category name -> AP.
    """

    overall: Mapping[str, float | None]
    per_class: Mapping[str, float | None]


def coco_truth(split: CocoSplit) -> dict[str, Any]:
    """Return every object of `split`, crowds as well, as COCO's evaluation code reads it.

    Ids are given anew from 1 (that code takes 0 for "not matched"), and areas where the file has none. An object
    without a mask that fits its image cannot be scored by it, and is left out.
    """
    objects: list[dict[str, Any]] = []
    for image in split.images:
        for record in split.annotations.get(image["id"], ()):
            if not record["segmentation"]:
                continue
            area = record.get("area")
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image["id"],
                    "category_id": record["category_id"],
                    "bbox": record["bbox"],
                    "segmentation": record["segmentation"],
                    "area": _area(record, image) if area is None else area,
                    "iscrowd": int(bool(record.get("iscrowd"))),
                }
            )
    images = [{name: image[name] for name in ("id", "height", "width")} for image in split.images]
    return {"images": images, "categories": [dict(each) for each in split.categories], "annotations": objects}


def score_detections(truth: Mapping[str, Any], detections: Sequence[Detection], kind: str) -> CocoScores:
    """Score `detections` against `truth` (of `coco_truth`) by their boxes or by their masks.

    Args:
        kind: one of `KINDS`; the area of a detection is its box's or its mask's accordingly.
    """
    fields = ("image_id", "category_id", "score", _READ[kind])
    objects = [dict(each) for each in truth["annotations"]]  # the evaluation writes into them
    expected = COCO({**truth, "annotations": objects})
    detected = expected.loadRes([{name: each[name] for name in fields} for each in detections])
    evaluation = COCOeval_faster(expected, detected, iouType=KINDS[kind])
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])  # thresholds, recalls, classes, areas, most detections
    recall = np.asarray(evaluation.eval["recall"])  # thresholds, classes, areas, most detections
    overall = {f"ap{area}": _mean(precision[..., number, -1]) for number, area in enumerate(_AREAS)}
    overall |= {"ap50": _mean(precision[0, ..., 0, -1]), "ap75": _mean(precision[5, ..., 0, -1])}
    overall |= {f"ar{most}": _mean(recall[..., 0, number]) for number, most in enumerate(_MOST)}
    overall |= {f"ar{area}": _mean(recall[..., number, -1]) for number, area in enumerate(_AREAS) if area}
    names = {each["id"]: str(each["name"]) for each in truth["categories"]}
    ids = evaluation.params.catIds
    per_class = {names[category]: _mean(precision[:, :, place, 0, -1]) for place, category in enumerate(ids)}
    return CocoScores(overall=overall, per_class=per_class)


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """Return the mean of what was scored; -1 marks what was not."""
    scored = values[values > -1]
    return float(scored.mean()) if scored.size else None


def _area(record: Mapping[str, Any], image: Mapping[str, Any]) -> float:
    left, top, width, height = record["bbox"]
    instance = Instance(label=0, bbox_xywh=(left, top, width, height), segmentation=record["segmentation"])
    return float(instance.mask(image["height"], image["width"]).sum())


@torch.no_grad()
def detect(detector: Any, split: CocoSplit, *, batch_size: int, workers: int = 0) -> list[Detection]:
    """Return the detections in every image of `split`, those without objects as well; boxes and masks in its pixels.

    Raises:
        ImageReadError, DatasetError: as `DetectionImages`.
    """
    device = next(detector.parameters()).device
    images = DetectionImages(split, [(position, False) for position in range(len(split.images))], objects=False)
    loader = DataLoader(images, batch_size=batch_size, num_workers=workers, collate_fn=list)
    detections: list[Detection] = []
    mode = detector.training
    detector.eval()
    records = iter(split.images)
    with progress_bar(total=len(images), desc="detecting", unit="image", leave=False) as bar:
        for batch in loader:
            answers = detector([pixels.to(device) for pixels, _ in batch])
            for answer in answers:
                detections += _records(answer, next(records)["id"], split.categories)
            bar.update(len(batch))
    detector.train(mode)
    return detections


def _records(answer: dict[str, Tensor], image_id: int, categories: Sequence[Any]) -> list[Detection]:
    boxes = answer["boxes"].cpu()
    boxes[:, 2:] -= boxes[:, :2]
    masks = (answer["masks"][:, 0] > 0.5).cpu().numpy().astype(np.uint8)
    codes = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0))) if len(masks) else []
    return [
        {
            "image_id": image_id,
            "category_id": categories[label - 1]["id"],
            "score": score,
            "bbox": box,
            "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
        }
        for label, score, box, code in zip(
            answer["labels"].tolist(), answer["scores"].tolist(), boxes.tolist(), codes, strict=True
        )
    ]

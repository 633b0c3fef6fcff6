"""A detector's answers for every image of a split, in COCO's results format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lfi_pipeline.evaluation.detection.coco_data import CocoSplit, DetectionImages
from lfi_pipeline.evaluation.detection.coco_score import Detection


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
    with tqdm(total=len(images), desc="detecting", unit="image", leave=False) as bar:
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

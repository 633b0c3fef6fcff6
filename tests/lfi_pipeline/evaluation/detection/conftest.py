"""A directory in COCO's layout with everything that such files hold, and a detector small enough for seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SHAPES = {11: (40, 64), 12: (64, 64), 13: (64, 30), 14: (50, 50)}
"""Image id -> height and width; the last image has no objects."""


def polygon(left: float, top: float, width: float, height: float) -> list[list[float]]:
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def _object(image: int, category: int, box: tuple[float, float, float, float], **options: Any) -> dict[str, Any]:
    plain = {"id": image * 100 + round(box[0]), "iscrowd": 0, "segmentation": polygon(*box), "area": box[2] * box[3]}
    return {"image_id": image, "category_id": category, "bbox": list(box)} | plain | options


def objects() -> list[dict[str, Any]]:
    crowd = {"size": [64, 64], "counts": [0, 64 * 64]}
    return [
        _object(11, 5, (4, 6, 20, 12)),
        _object(11, 2, (40, 20, 16, 16)),
        _object(12, 5, (50, 40, 30, 30)),  # reaches over the edge
        _object(12, 5, (10, 10, 0, 12)),  # empty
        _object(12, 2, (70, 5, 8, 8)),  # outside
        _object(12, 2, (0, 0, 64, 64), iscrowd=1, segmentation=crowd),
        _object(13, 2, (2, 8, 24, 40)),
    ]


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """`train2030` and `val` with the same four images: light boxes on dark ground, redder for category 5."""
    root = tmp_path / "small"
    (root / "annotations").mkdir(parents=True)
    record = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in SHAPES.items()],
        "categories": [{"id": 5, "name": "red"}, {"id": 2, "name": "grey"}],
        "annotations": objects(),
    }
    for split in ("train2030", "val"):
        (root / split).mkdir()
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(record))
        for image, (height, width) in SHAPES.items():
            pixels = np.full((height, width, 3), 30, np.uint8)
            for each in objects():
                if each["image_id"] == image and not each["iscrowd"]:
                    left, top, across, down = (int(value) for value in each["bbox"])
                    colour = (250, 60, 60) if each["category_id"] == 5 else (180, 180, 180)
                    pixels[top : top + down, left : left + across] = colour
            Image.fromarray(pixels).save(root / split / f"{image}.png")
    return root

"""AP by faster-coco-eval against pycocotools, on the same random detections."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lfi_pipeline.evaluation.detection.coco_data import CocoSplit
from lfi_pipeline.evaluation.detection.protocol import KINDS, coco_truth, score_detections

ORDER = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
ORDER += ["ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"]
SIDE = 120  # pixels: room for COCO's large objects, from 96 a side
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 9, "name": "never there"}]


def rle(box: npt.NDArray[np.float64], generator: np.random.Generator) -> dict[str, Any]:
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    left, top, width, height = box.astype(int)
    mask[top : top + height, left : left + width] = generator.random((height, width)) < 0.9
    code = coco_mask.encode(mask)
    return {"size": code["size"], "counts": code["counts"].decode()}


def random_box(generator: np.random.Generator) -> npt.NDArray[np.float64]:
    size = generator.choice([12, 50, 108]) + generator.integers(-6, 7, 2)
    return np.concatenate([generator.integers(0, SIDE - size + 1), size]).astype(np.float64)


def near(box: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    low = np.clip(box[:2] + generator.integers(-4, 5, 2), 0, SIDE - 2)
    return np.concatenate([low, np.clip(box[2:] + generator.integers(-4, 5, 2), 1, SIDE - low)])


def random_case(seed: int) -> tuple[CocoSplit, list[dict[str, Any]]]:
    """A few images, one of them empty, some objects crowds; detections near objects and beside, with tied scores."""
    generator = np.random.default_rng(seed)
    images = [{"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE} for number in (4, 5, 6, 90)]
    annotations: dict[int, list[dict[str, Any]]] = {}
    detections = []
    for image in images[:-1]:
        boxes = [random_box(generator) for _ in range(generator.integers(0, 9))]
        labels = [int(generator.choice([7, 3])) for _ in boxes]
        annotations[image["id"]] = [
            {
                "id": number,  # from 0, and again in each image: ids of the file are not to matter
                "image_id": image["id"],
                "category_id": label,
                "bbox": box.tolist(),
                "segmentation": rle(box, generator),
                "iscrowd": int(generator.random() < 0.25),
            }
            for number, (box, label) in enumerate(zip(boxes, labels, strict=True))
        ]
        for record, box in zip(annotations[image["id"]], boxes, strict=True):
            record["area"] = float(coco_mask.area(record["segmentation"]))
            for _ in range(generator.integers(0, 4)):
                found = near(box, generator)
                label = record["category_id"] if generator.random() < 0.8 else 9
                detections.append((image["id"], label, found))
    most = int(generator.choice([3, 130]))  # of which COCO counts 100
    detections += [(int(generator.choice([4, 90])), 7, random_box(generator)) for _ in range(most)]
    results = [
        {
            "image_id": image_id,
            "category_id": label,
            "bbox": (box + generator.random(4) / 8).tolist(),
            "segmentation": rle(box, generator),
            "score": float(generator.integers(1, 6)) / 8,
        }
        for image_id, label, box in detections
    ]
    split = CocoSplit(
        file=Path("instances_val.json"),
        folder=Path(),
        images=images,
        categories=sorted(CATEGORIES, key=lambda each: each["id"]),
        annotations=annotations,
        usable={},
        objects=0,
        dropped=0,
    )
    return split, results


def by_pycocotools(truth: dict[str, Any], detections: list[dict[str, Any]], kind: str) -> list[float | None]:
    with redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = copy.deepcopy(truth) | {"info": {}}
        expected.createIndex()
        field = "bbox" if kind == "box" else "segmentation"
        kept = [{name: each[name] for name in ("image_id", "category_id", "score", field)} for each in detections]
        evaluation = COCOeval(expected, expected.loadRes(copy.deepcopy(kept)), KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else float(value) for value in evaluation.stats]


@pytest.mark.parametrize("kind", list(KINDS))
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_scores_are_those_of_pycocotools(kind: str, seed: int) -> None:
    split, detections = random_case(seed)
    truth = coco_truth(split)
    found = score_detections(truth, detections, kind).overall
    expected = by_pycocotools(truth, detections, kind)
    for name, value in zip(ORDER, expected, strict=True):
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-6)), name


def test_the_random_cases_are_not_trivial() -> None:
    """Crowds, every area range, more than a hundred detections: each is there, and no score is all or nothing."""
    cases = [random_case(seed) for seed in range(8)]
    scores = [score_detections(coco_truth(split), found, "mask").overall for split, found in cases]
    for name in ORDER:
        values = [each[name] for each in scores]
        assert any(value is not None and 0.02 < value < 0.98 for value in values), name
    records = [record for split, _ in cases for found in split.annotations.values() for record in found]
    assert {record["iscrowd"] for record in records} == {0, 1}
    assert max(sum(d["image_id"] == 90 for d in found) for _, found in cases) > 50


@pytest.mark.parametrize("kind", list(KINDS))
def test_perfect_detections_score_one_and_a_class_without_objects_none(kind: str) -> None:
    split, _ = random_case(1)
    truth = coco_truth(split)
    perfect = [record | {"score": 0.5} for record in truth["annotations"] if not record["iscrowd"]]
    found = score_detections(truth, perfect, kind)
    assert found.overall["ap"] == pytest.approx(1.0)
    assert found.per_class["never there"] is None
    assert found.per_class["cat"] == pytest.approx(1.0)
    wrong = [each | {"category_id": 10 - each["category_id"]} for each in perfect]
    assert score_detections(truth, wrong, kind).overall["ap"] < 0.5  # type: ignore[operator]


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_detection_at_all_scores_nothing(kind: str) -> None:
    split, _ = random_case(1)
    found = score_detections(coco_truth(split), [], kind)
    assert (found.overall["ap"], found.overall["ar100"], found.per_class["never there"]) == (0.0, 0.0, None)


def test_areas_that_a_file_leaves_out_are_those_of_the_masks() -> None:
    split, _ = random_case(2)
    expected = [record["area"] for record in coco_truth(split)["annotations"]]
    for records in split.annotations.values():
        for record in records:
            del record["area"]  # type: ignore[attr-defined]
    assert [record["area"] for record in coco_truth(split)["annotations"]] == expected
    assert len(set(expected)) > 3


def test_an_object_without_a_mask_is_left_out() -> None:
    split, _ = random_case(2)
    before = len(coco_truth(split)["annotations"])
    next(record for records in split.annotations.values() for record in records)["segmentation"] = None  # type: ignore[index]
    assert len(coco_truth(split)["annotations"]) == before - 1

"""Reading a directory in COCO's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lfi_pipeline.core.errors import DatasetError, ImageReadError
from lfi_pipeline.evaluation.detection.coco_data import (
    DetectionImages,
    find_instances,
    one_category,
    read_split,
)
from lfi_pipeline.evaluation.detection.finetuning import training_draws
from lfi_pipeline.evaluation.detection.protocol import coco_truth


def test_training_takes_whole_objects_with_boxes_cut_at_the_edge(coco_root: Path) -> None:
    split = read_split(find_instances(coco_root, "train"))
    assert split.folder == coco_root / "train2030"
    assert [image["id"] for image in split.images] == [11, 12, 13, 14]
    assert [category["name"] for category in split.categories] == ["grey", "red"]  # in order of id
    assert {image: len(found) for image, found in split.usable.items()} == {11: 2, 12: 1, 13: 1}
    assert split.usable[12][0].bbox_xywh == (50, 40, 14, 24)
    assert split.dropped == 2
    assert len(split.annotations[12]) == 4  # scoring sees the crowd and the odd boxes as the file has them


def test_an_item_is_what_torchvision_is_trained_on(coco_root: Path) -> None:
    split = read_split(find_instances(coco_root, "val"))
    pixels, target = DetectionImages(split, [(0, False)])[0]
    assert (pixels.shape, pixels.dtype) == ((3, 40, 64), torch.float32)
    assert target["boxes"].tolist() == [[4, 6, 24, 18], [40, 20, 56, 36]]
    assert target["labels"].tolist() == [2, 1]
    assert target["masks"].shape == (2, 40, 64)
    for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
        inside = mask[box[1] : box[3], box[0] : box[2]]
        assert inside.all()
        assert inside.sum() == mask.sum()
    assert pixels[0, 10, 10] == pytest.approx(250 / 255)


def test_a_mirrored_item_mirrors_image_boxes_and_masks_alike(coco_root: Path) -> None:
    split = read_split(find_instances(coco_root, "val"))
    images = DetectionImages(split, [(0, False), (0, True)])
    (plain, before), (mirrored, after) = images[0], images[1]
    assert torch.equal(mirrored, plain.flip(-1))
    assert after["boxes"].tolist() == [[40, 6, 60, 18], [8, 20, 24, 36]]
    assert torch.equal(after["masks"], before["masks"].flip(-1))
    assert torch.equal(after["labels"], before["labels"])


def test_an_image_without_objects_is_there_for_scoring(coco_root: Path) -> None:
    split = read_split(find_instances(coco_root, "val"))
    pixels, target = DetectionImages(split, [(3, False)], objects=False)[0]
    assert pixels.shape == (3, 50, 50)
    assert (target["boxes"].shape, target["masks"].shape) == ((0, 4), (0, 50, 50))


@pytest.mark.parametrize("place", ["images/val", "images", "."])
def test_images_are_found_where_coco_and_its_kin_have_them(coco_root: Path, place: str) -> None:
    (coco_root / place).mkdir(parents=True, exist_ok=True)
    for image in (coco_root / "val").glob("*.png"):
        image.rename(coco_root / place / image.name)
    assert read_split(find_instances(coco_root, "val")).folder == coco_root / place


def test_what_is_not_there_is_told(coco_root: Path) -> None:
    with pytest.raises(DatasetError, match=r"instances_test\*.*holds instances_train2030.json, instances_val.json"):
        find_instances(coco_root, "test")
    file = find_instances(coco_root, "val")
    (coco_root / "annotations/instances_valminus.json").write_text("{}")
    assert find_instances(coco_root, "val") == file  # the exact name wins
    (coco_root / "annotations/instances_train2031.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"must hold one.*such as train2017"):
        find_instances(coco_root, "train")
    (coco_root / "val").rename(coco_root / "elsewhere")
    with pytest.raises(DatasetError, match=r"must lie in one of .*none of them has 11\.png"):
        read_split(file)


def test_files_that_contradict_each_other_are_told(coco_root: Path) -> None:
    file = find_instances(coco_root, "val")
    split = read_split(file)
    Image.new("RGB", (30, 30)).save(coco_root / "val/11.png")
    with pytest.raises(DatasetError, match=r"11\.png must be 64 by 40 pixels.*it is 30 by 30"):
        DetectionImages(split, [(0, False)])[0]
    (coco_root / "val/11.png").unlink()
    with pytest.raises(ImageReadError):
        DetectionImages(split, [(0, False)])[0]
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"annotations": []}))
    with pytest.raises(DatasetError, match="must have objects"):
        training_draws(read_split(file, split.folder), 4, seed=0)
    file.write_text(json.dumps(record | {"categories": record["categories"][:1]}))
    (note,) = read_split(file, split.folder).notes
    assert note.startswith("instances_val.json: 4 objects left out, of a category that is not listed (id 1140")
    file.write_text(json.dumps(record | {"images": [], "annotations": []}))
    with pytest.raises(DatasetError, match="must list images and categories"):
        read_split(file)


def test_objects_of_one_category_keep_all_but_their_names(coco_root: Path) -> None:
    split = read_split(coco_root / "annotations/instances_val.json")
    merged = one_category(split)
    assert [each["name"] for each in merged.categories] == ["object"]
    assert {each["category_id"] for of in merged.annotations.values() for each in of} == {1}
    assert {each.label for of in merged.usable.values() for each in of} == {0}
    assert {each.label for of in split.usable.values() for each in of} == {0, 1}
    for image, of in split.usable.items():
        assert [each.bbox_xywh for each in merged.usable[image]] == [each.bbox_xywh for each in of]
    truth = coco_truth(merged)
    assert [each["iscrowd"] for each in truth["annotations"]] == [
        e["iscrowd"] for e in coco_truth(split)["annotations"]
    ]

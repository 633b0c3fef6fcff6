"""Small faithful copies of the layouts that people have on disk. Each function fills `root` and returns it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lfi_pipeline.data.config import ScenesConfig
from lfi_pipeline.data.scenes import write_scenes

PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
VLCS_DOMAINS = {"Caltech101": "CALTECH", "LabelMe": "LABELME", "SUN09": "SUN", "VOC2007": "PASCAL"}
VLCS_CLASSES = ("bird", "car", "chair", "dog", "person")
TINY_WORDS = {  # in wnids.txt they are not sorted
    "n02124075": "Egyptian cat",
    "n01443537": "goldfish, Carassius auratus",
    "n04067472": "reel",
}

RECIPES_OF_SCENES = (
    "scenes",
    "scenes-ablations",
    "scenes-groups",
    "scenes-single",
    "scenes-teacher",
    "scenes-tune",
)
"""Recipes whose data are the layout of `make_scenes`."""


def image_bytes(colour: tuple[int, int, int] = (200, 30, 60), form: str = "JPEG", size: int = 8) -> bytes:
    """Return a file of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, form)
    return buffer.getvalue()


def write(path: Path, content: bytes | str | None = None) -> Path:
    """Write a file, by default an image in the format of its name, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        content = image_bytes(form="PNG" if path.suffix.lower() == ".png" else "JPEG")
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def make_tiny_imagenet(root: Path, per_class: int = 2) -> Path:
    """Copy tiny-imagenet-200 as its zip unpacks: boxes beside images, one folder of validation images, words of all."""
    write(root / "wnids.txt", "".join(f"{wnid}\n" for wnid in TINY_WORDS))
    more = {"n00001740": "entity", "n00001930": "physical entity"}
    write(root / "words.txt", "".join(f"{wnid}\t{words}\n" for wnid, words in sorted({**TINY_WORDS, **more}.items())))
    annotations = []
    for number, wnid in enumerate(TINY_WORDS):
        for i in range(per_class):
            write(root / f"train/{wnid}/images/{wnid}_{i}.JPEG")
        write(
            root / f"train/{wnid}/{wnid}_boxes.txt", "".join(f"{wnid}_{i}.JPEG\t0\t1\t6\t7\n" for i in range(per_class))
        )
        write(root / f"val/images/val_{number}.JPEG")
        annotations.append(f"val_{number}.JPEG\t{wnid}\t0\t1\t6\t7\n")
    write(root / "val/val_annotations.txt", "".join(reversed(annotations)))
    write(root / "test/images/test_0.JPEG")
    return root


def make_pacs(root: Path, *, images: str = "kfold", lists: str | None = "kfold", per_class: int = 3) -> Path:
    """Copy PACS: domain folders below `images`, the official lists in `lists` (None: DomainBed's copy, no lists).

    Of each class and domain the last image is of the crossval list and the others of the train list.
    """
    for domain in PACS_DOMAINS:
        rows: dict[str, list[str]] = {"train": [], "crossval": [], "test": []}
        for label, name in enumerate(PACS_CLASSES, start=1):
            for i in range(1, per_class + 1):
                ending = "png" if domain == "sketch" else "jpg"
                path = f"{domain}/{name}/pic_{i:03d}.{ending}"
                write(root / images / path)
                rows["crossval" if i == per_class else "train"].append(f"{path} {label}\n")
                rows["test"].append(f"{path} {label}\n")
        for part, lines in rows.items():
            if lists is not None:
                write(root / lists / f"{domain}_{part}_kfold.txt", "".join(lines))
    return root


def make_vlcs(root: Path, *, official: bool = False, folder: str = "VLCS") -> Path:
    """Copy VLCS: DomainBed's tree, or the official one: `train`, `crossval`, `test`, `full`, numbered classes."""
    for plain, name in VLCS_DOMAINS.items():
        for label, class_name in enumerate(VLCS_CLASSES):
            if not official:
                write(root / folder / f"{plain}/{class_name}/img_{label}.jpg")
                continue
            for number, part in enumerate(("train", "crossval", "test")):
                write(root / folder / f"{name}/{part}/{label}/imgs_{number}.jpg")
                write(root / folder / f"{name}/full/{label}/imgs_{number}.jpg")
    return root


def make_waterbirds(root: Path, *, folder: str = "waterbird_complete95_forest2water2", per_group: int = 2) -> Path:
    """Copy Waterbirds as its tar unpacks: one folder of images by species, all told of in `metadata.csv`."""
    rows = ["img_id,img_filename,y,place,split,place_filename"]
    for split in range(3):
        for y, place in ((0, 0), (0, 1), (1, 0), (1, 1)):
            for number in range(per_group):
                name = f"{y:03d}.{('Sparrow', 'Gull')[y]}/{split}_{place}_{number}.jpg"
                write(root / folder / name)
                rows.append(f"{len(rows)},{name},{y},{place},{split},/{('b', 'o')[place]}/{number:08d}.jpg")
    write(root / folder / "metadata.csv", "\n".join(rows) + "\n")
    return root


CELEBA_ATTRIBUTES = ("5_o_Clock_Shadow", "Blond_Hair", "Male", "Young")  # four of forty


def make_celeba(root: Path, *, published: bool, images: int = 12) -> Path:
    """Copy CelebA: its lists as published, in the folders Anno, Eval and Img, or as CSV, as the copy on Kaggle has them.

    Image i is blond where i % 2 is 0 and male where i % 4 is 0 or 1; the last two are of val and of test.
    """
    names = [f"{number + 1:06d}.jpg" for number in range(images)]
    values = [(1, 1 - 2 * (i % 2), 1 if i % 4 < 2 else -1, -1) for i in range(images)]
    parts = [0] * (images - 2) + [1, 2]
    folder = "Img/img_align_celeba" if published else "img_align_celeba/img_align_celeba"
    for name in names:
        write(root / folder / name)
    if published:
        lines = [
            f"{name} {' '.join(f'{value:2d}' for value in of_image)}"
            for name, of_image in zip(names, values, strict=True)
        ]
        write(
            root / "Anno/list_attr_celeba.txt", "\n".join([str(images), f"{' '.join(CELEBA_ATTRIBUTES)} ", *lines, ""])
        )
        write(root / "Eval/list_eval_partition.txt", "".join(f"{n} {p}\n" for n, p in zip(names, parts, strict=True)))
        return root
    rows = [",".join(map(str, (name, *of_image))) for name, of_image in zip(names, values, strict=True)]
    write(root / "list_attr_celeba.csv", "\n".join([",".join(("image_id", *CELEBA_ATTRIBUTES)), *rows, ""]))
    of_parts = [f"{name},{part}" for name, part in zip(names, parts, strict=True)]
    write(root / "list_eval_partition.csv", "\n".join(["image_id,partition", *reversed(of_parts), ""]))
    return root


def make_coco(root: Path, *, train: int = 12, val: int = 6) -> Path:
    """Copy COCO 2017: scenes under its names of folders and files, with captions, boxes and masks, without domains."""
    write_scenes(root, ScenesConfig(train=train, val=val))
    (root / "scenes.json").unlink()
    for split in ("train", "val"):
        (root / split).rename(root / f"{split}2017")
        for kind in ("captions", "instances"):
            path = root / f"annotations/{kind}_{split}.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            for image in content["images"]:
                del image["domain"]
            path.with_name(f"{kind}_{split}2017.json").write_text(json.dumps(content), encoding="utf-8")
            path.unlink()
    return root


def make_scenes(root: Path, *, train: int = 12, val: int = 6, **settings: Any) -> Path:
    """Render scenes as `lfi make-scenes` does."""
    write_scenes(root, ScenesConfig(train=train, val=val, **settings))
    return root


def make_imagefolder(root: Path, splits: Mapping[str, Mapping[str, int]]) -> Path:
    """Write split -> class -> number of images; split "" is the root itself."""
    for split, classes in splits.items():
        for name, count in classes.items():
            for i in range(count):
                write(root / split / name / f"{i:05d}.jpg")
    return root


def tar_bytes(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar; a name stands for a plain file of that name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_webdataset(root: Path, tars: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Path:
    """Write tar path -> key -> extension -> content: bytes, text, or what becomes JSON; None is an image."""
    for path, samples in tars.items():
        members = [
            (f"{key}.{kind}", _content(content, kind))
            for key, parts in samples.items()
            for kind, content in parts.items()
        ]
        write(root / path, tar_bytes(members))
    return root


def _content(content: Any, kind: str) -> bytes:
    if content is None:
        return image_bytes(form="PNG" if kind.endswith("png") else "JPEG")
    if kind.endswith("json") and not isinstance(content, str | bytes):
        content = json.dumps(content)
    return content.encode() if isinstance(content, str) else content

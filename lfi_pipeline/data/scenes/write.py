"""Write `scenes` to disk in COCO's own layout."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from lfi_pipeline.core.errors import OutputExistsError
from lfi_pipeline.core.progress import progress_bar
from lfi_pipeline.data.config import ScenesConfig
from lfi_pipeline.data.scenes.categories import NAMES
from lfi_pipeline.data.scenes.render import render_scene

_SETTINGS = "scenes.json"
_LICENSE = {
    "id": 1,
    "name": "CC BY-SA 4.0. All emojis designed by OpenMoji, the open-source emoji and icon project",
    "url": "https://creativecommons.org/licenses/by-sa/4.0/",
}


def write_scenes(out: Path, config: ScenesConfig, *, workers: int | None = None) -> None:
    """Render both splits below `out`; a rerun with the same config finishes or confirms the work.

    Raises:
        OutputExistsError: `out` holds something else, or scenes of another config.
    """
    settings = json.dumps(asdict(config), indent=2, sort_keys=True) + "\n"
    _require_own_or_empty(out, settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(f"{out} cannot be made: {error.strerror or error}. Choose another `out`.") from error
    if not (out / _SETTINGS).exists():
        (out / _SETTINGS).write_text(settings, encoding="utf-8")
    (out / "annotations").mkdir(exist_ok=True)
    splits = {"train": (config.train, config.domains), "val": (config.val, config.domains + config.held_out)}
    for split, (count, domains) in splits.items():
        if (out / f"annotations/instances_{split}.json").exists():  # written last: the split is complete
            continue
        (out / split).mkdir(exist_ok=True)
        jobs = [(out, split, index, domains[index % len(domains)], config) for index in range(count)]
        with ProcessPoolExecutor(max_workers=workers or os.cpu_count()) as pool:
            made = pool.map(_write_one, jobs, chunksize=32)
            records = list(progress_bar(made, total=count, desc=f"render {split}", unit="image"))
        _write_annotations(out, split, records)


def _require_own_or_empty(out: Path, settings: str) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputExistsError(f"{out} must be a directory, found a file.")
    if (out / _SETTINGS).exists():
        stored = (out / _SETTINGS).read_text(encoding="utf-8")
        if stored != settings:
            raise OutputExistsError(
                f"{out} holds scenes rendered with other settings ({_differences(stored, settings)}). "
                "Give the same options, or another `out`."
            )
    elif any(out.iterdir()):
        raise OutputExistsError(f"{out} must be empty or hold scenes, found other files. Choose another `out`.")


def _differences(stored: str, settings: str) -> str:
    """Name every setting that differs, the stored value first."""
    try:
        old, new = dict(json.loads(stored)), dict(json.loads(settings))
    except (ValueError, TypeError):
        return f"{_SETTINGS} cannot be read"
    differing = (name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
    return ", ".join(f"{name} {old.get(name)} != {new.get(name)}" for name in differing)


def _write_one(job: tuple[Path, str, int, str, ScenesConfig]) -> dict[str, Any]:
    out, split, index, domain, config = job
    scene = render_scene(
        seed=config.seed, split=split, index=index, size=config.size, domain=domain, object_scale=config.object_scale
    )
    file_name = f"{index + 1:012d}.png"
    Image.fromarray(scene.image).save(out / split / file_name)
    objects = []
    for item in scene.objects:
        rle = coco_mask.encode(np.asfortranarray(item.mask, dtype=np.uint8))
        objects.append(
            {
                "category_id": item.label + 1,
                "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                "area": int(coco_mask.area(rle)),
                "segmentation": {
                    "size": [int(side) for side in rle["size"]],
                    "counts": rle["counts"].decode("ascii"),
                },
                "iscrowd": 0,
            }
        )
    return {"id": index + 1, "file_name": file_name, "domain": domain, "captions": scene.captions, "objects": objects,
            "height": config.size, "width": config.size}  # fmt: skip


def _write_annotations(out: Path, split: str, records: Sequence[dict[str, Any]]) -> None:
    images = [
        {key: record[key] for key in ("id", "file_name", "height", "width", "domain")} | {"license": 1}
        for record in records
    ]
    captions = [(record["id"], text) for record in records for text in record["captions"]]
    instances = [(record["id"], item) for record in records for item in record["objects"]]
    common = {
        "info": {"description": "scenes, rendered by lfi make-scenes"},
        "licenses": [_LICENSE],
        "images": images,
    }
    contents = {
        "captions": common
        | {
            "annotations": [
                {"id": number, "image_id": image_id, "caption": text}
                for number, (image_id, text) in enumerate(captions, start=1)
            ]
        },
        "instances": common
        | {
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)],
            "annotations": [
                {"id": number, "image_id": image_id} | item
                for number, (image_id, item) in enumerate(instances, start=1)
            ],
        },
    }
    for kind, content in contents.items():
        path = out / f"annotations/{kind}_{split}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(path)

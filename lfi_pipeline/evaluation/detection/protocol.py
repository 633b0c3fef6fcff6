"""Detection: COCO's box AP and mask AP after a short fine-tuning of Mask R-CNN on the student's backbone.

He, Gkioxari, Dollár, Girshick, "Mask R-CNN", ICCV 2017, section 5; plain vision transformers as in Li, Mao, Girshick,
He, "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022. The same fixed schedule serves every
run, so that what differs is the backbone that it starts from. The detector sees every image of the training split,
those of domains that the run held out as well.

AP is that of Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, by faster-coco-eval: the mean over
categories and over the IoU thresholds 0.50, 0.55, ..., 0.95 of the precision at 101 recalls; at most 100 detections an
image; crowds are neither hits nor misses; small is below 32^2 pixels, large above 96^2.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.parse import write_recorded
from lfi_pipeline.core.runtime import progress_bar, tell
from lfi_pipeline.data import load_manifest
from lfi_pipeline.data.dataset import Instance
from lfi_pipeline.evaluation.config import DetectionConfig, EvaluationConfig
from lfi_pipeline.evaluation.detection.coco_data import (
    CocoSplit,
    DetectionImages,
    find_instances,
    one_category,
    read_split,
)
from lfi_pipeline.evaluation.detection.finetuning import Kept, Schedule, finetune, training_draws
from lfi_pipeline.evaluation.detection.model import build_detector
from lfi_pipeline.evaluation.protocols import EVALUATION, ProtocolResult, load, write_result
from lfi_pipeline.students.backbone import build_backbone
from lfi_pipeline.training.learner import LoadedRun

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


def detection(run: Path, common: EvaluationConfig, config: DetectionConfig) -> ProtocolResult:
    """Fine-tune a Mask R-CNN on the backbone of `run` and score its boxes and masks.

    Raises:
        ConfigError: the run's data set has no instances and no other is given; the image size does not suit the
            backbone; the loss diverged.
        DatasetError: the directory is not in COCO's layout.
        RunError, TargetsError, UnknownNameError: as `load_run`.
    """
    start = time.monotonic()
    loaded = load(run, common)
    device = next(loaded.student.parameters()).device
    train, val = _splits(loaded, config)
    truth = coco_truth(val)
    seed = loaded.config.data.seed if config.seed is None else config.seed
    size = config.image_size or _side(loaded)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone: Any = loaded.student.backbone
        if config.source == "scratch":
            backbone = build_backbone(replace(loaded.config.student, pretrained=False))
        detector = build_detector(backbone, classes=len(train.categories), size=size, width=config.detection_width).to(
            device
        )
    draws = training_draws(train, config.iterations * config.batch_size, seed)
    schedule = Schedule(iterations=config.iterations, batch_size=config.batch_size, learning_rate=config.lr, seed=seed)
    settings = {
        "dataset": _name(loaded, config),
        "train_split": train.file.stem.removeprefix("instances_"),
        "split": val.file.stem.removeprefix("instances_"),
        "class_agnostic": config.class_agnostic,
        "weights": common.weights if config.source == "run" else None,
        "source": config.source,
        **{name: getattr(config, name) for name in ("iterations", "batch_size", "lr")},
        "width": config.detection_width,
        "image_size": size,
        "seed": "the run's" if config.seed is None else seed,  # so that seeds of one setting can be compared
    }
    kept = _kept(run, settings, seed, detector, draws)
    began = time.monotonic()
    images = DetectionImages(train, draws)
    losses, before = finetune(detector, images, schedule, workers=common.workers, tell=tell, kept=kept)
    last_part = time.monotonic() - began
    detections = detect(detector, val, batch_size=config.batch_size, workers=common.workers)
    scored = {kind: score_detections(truth, detections, kind) for kind in KINDS}
    result = ProtocolResult(
        protocol="detection",
        settings=settings,
        scores={f"{kind}_{name}": scored[kind].overall[name] for kind in KINDS for name in ("ap", "ap50")},
        details={
            **{kind: asdict(each) for kind, each in scored.items()},
            "finetune_seconds": None if before is None else before + last_part,
            "loss_first": fmean(losses[: len(losses) // 10 + 1]),
            "loss_last": fmean(losses[-(len(losses) // 10) - 1 :]),
            "parameters": sum(parameter.numel() for parameter in detector.parameters()),
            "strides": list(detector.backbone.strides),
            "seed": seed,
            "detections": len(detections),
            "train_images": len(train.usable),
            "train_objects": train.objects,
            "empty_boxes_dropped": train.dropped,
            "left_out": [*train.notes, *val.notes],
            "val_images": len(val.images),
            "val_objects": len(truth["annotations"]),
        },
        seconds=(before or 0.0) + time.monotonic() - start,
    )
    if config.keep_detections:
        _keep(run, result, detections)
    if kept.path.is_file():
        write_result(run, result)  # before what it was made from goes
        kept.path.unlink()
    return result


def _kept(run: Path, settings: Mapping[str, Any], seed: int, detector: Any, draws: Sequence[tuple[int, bool]]) -> Kept:
    """Return the checkpoint of this fine-tuning; its fingerprint covers settings, seed, weights and draws."""
    digest = hashlib.sha256(json.dumps([dict(settings), seed, list(draws)], sort_keys=True).encode())
    for name, value in detector.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    fingerprint = digest.hexdigest()
    return Kept(path=run / EVALUATION / f"finetuning-{fingerprint[:8]}.safetensors", fingerprint=fingerprint)


def _splits(loaded: LoadedRun, config: DetectionConfig) -> tuple[CocoSplit, CocoSplit]:
    if config.detection_data is not None:
        files = [find_instances(config.detection_data, split or name) for split, name in _asked(config, "train", "val")]
        train, val = (read_split(file) for file in files)
    else:
        dataset, root = loaded.store.spec.dataset, loaded.store.source_root
        manifest = load_manifest(loaded.store.source, root)
        if manifest.layout != "coco":
            raise ConfigError(
                f"The run's own data set, {dataset.name}, has no boxes and masks to train a detector on. Give a "
                "directory in COCO's layout with `detection_data`."
            )
        both = [manifest.files(split or name) for split, name in _asked(config, dataset.split, loaded.config.val_split)]
        train, val = (read_split(root / files["instances"], root / files["images"]) for files in both)
    names = [[category["name"] for category in split.categories] for split in (train, val)]
    if names[0] != names[1] or [c["id"] for c in train.categories] != [c["id"] for c in val.categories]:
        raise ConfigError(f"{train.file} and {val.file} must list the same categories with the same ids.")
    return (one_category(train), one_category(val)) if config.class_agnostic else (train, val)


def _asked(config: DetectionConfig, train: str, val: str) -> tuple[tuple[str | None, str], tuple[str | None, str]]:
    return (config.detection_train, train), (config.detection_val, val)


def _name(loaded: LoadedRun, config: DetectionConfig) -> str:
    return loaded.store.spec.dataset.name if config.detection_data is None else config.detection_data.resolve().name


def _side(loaded: LoadedRun) -> int:
    height, width = loaded.student.size
    if height != width:
        raise ConfigError(f"The student sees {height} by {width} pixels; detection needs a square: give an image size.")
    return height


def _keep(run: Path, result: ProtocolResult, detections: list[Detection]) -> None:
    name = f"detections-{Path(result.file_name).stem.removeprefix('detection-')}.json.gz"
    write_recorded(run, f"{EVALUATION}/{name}", gzip.compress(json.dumps(detections).encode(), mtime=0))

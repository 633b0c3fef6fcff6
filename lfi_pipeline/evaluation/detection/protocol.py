"""Detection: COCO's box AP and mask AP after a short fine-tuning of Mask R-CNN on the student's backbone.

He, Gkioxari, Dollár, Girshick, "Mask R-CNN", ICCV 2017, section 5; plain vision transformers as in Li, Mao, Girshick,
He, "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022. The same fixed schedule serves every
run, so that what differs is the backbone that it starts from. The detector sees every image of the training split,
those of domains that the run held out as well.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.parse import write_recorded
from lfi_pipeline.core.runtime import tell
from lfi_pipeline.data import load_manifest
from lfi_pipeline.evaluation.config import DetectionConfig, EvaluationConfig
from lfi_pipeline.evaluation.detection.coco_data import (
    CocoSplit,
    DetectionImages,
    find_instances,
    one_category,
    read_split,
    training_draws,
)
from lfi_pipeline.evaluation.detection.coco_score import KINDS, Detection, coco_truth, detect, score_detections
from lfi_pipeline.evaluation.detection.finetuning import Kept, Schedule, finetune
from lfi_pipeline.evaluation.detection.model import build_detector
from lfi_pipeline.evaluation.protocols import EVALUATION, ProtocolResult, load, write_result
from lfi_pipeline.students.backbone import build_backbone
from lfi_pipeline.training.learner import LoadedRun


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
    losses = finetune(detector, DetectionImages(train, draws), schedule, workers=common.workers, tell=tell, kept=kept)
    tuned = time.monotonic() - began
    detections = detect(detector, val, batch_size=config.batch_size, workers=common.workers)
    scored = {kind: score_detections(truth, detections, kind) for kind in KINDS}
    result = ProtocolResult(
        protocol="detection",
        settings=settings,
        scores={f"{kind}_{name}": scored[kind].overall[name] for kind in KINDS for name in ("ap", "ap50")},
        details={
            **{kind: asdict(each) for kind, each in scored.items()},
            "finetune_seconds": tuned,
            "loss_first": _mean(losses[: len(losses) // 10 + 1]),
            "loss_last": _mean(losses[-(len(losses) // 10) - 1 :]),
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
        seconds=time.monotonic() - start,
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


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

"""A detector learns a few images by heart, and finds their objects in the pixels of the originals."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pycocotools import mask as coco_mask

from lfi_pipeline.core.errors import ConfigError, RunError
from lfi_pipeline.evaluation.detection import finetuning
from lfi_pipeline.evaluation.detection.coco_data import DetectionImages, find_instances, read_split
from lfi_pipeline.evaluation.detection.finetuning import Kept, Schedule, finetune, training_draws
from lfi_pipeline.evaluation.detection.model import build_detector
from lfi_pipeline.evaluation.detection.protocol import detect
from lfi_pipeline.training.checkpoint import load_state, save_state

WIDTH = 16


def detector_of(seed: int = 0, name: str = "vit_tiny_patch16_224") -> Any:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2} if "vit" in name else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = timm.create_model(name, num_classes=0, **options)
        return build_detector(backbone, classes=2, size=32, width=WIDTH)


def schedule(iterations: int, learning_rate: float = 3e-3) -> Schedule:
    return Schedule(iterations=iterations, batch_size=3, learning_rate=learning_rate, seed=5)


def tuned(detector: Any, root: Path, plan: Schedule, **options: Any) -> list[float]:
    split = read_split(find_instances(root, "train"))
    draws = [(position, False) for position, _ in training_draws(split, plan.iterations * plan.batch_size, 0)]
    return finetune(detector, DetectionImages(split, draws), plan, **options)[0]


def test_a_few_images_are_learned_and_found_in_their_own_pixels(coco_root: Path) -> None:
    detector = detector_of()
    losses = tuned(detector, coco_root, schedule(80))
    assert losses[-1] < 0.3 * losses[0]
    split = read_split(find_instances(coco_root, "val"))
    found = detect(detector, split, batch_size=3)
    for image in (11, 13):  # 64 by 40 and 30 by 64 pixels, seen as 32 by 20 and 15 by 32
        for each in split.annotations[image]:
            same = [d for d in found if (d["image_id"], d["category_id"]) == (image, each["category_id"])]
            best = max(same, key=lambda detection: float(detection["score"]))
            assert coco_mask.iou([best["bbox"]], [each["bbox"]], [0]).item() > 0.6
            truth = coco_mask.frPyObjects(each["segmentation"], *best["segmentation"]["size"])
            assert coco_mask.iou([best["segmentation"]], truth, [0]).item() > 0.6


def test_answers_stay_inside_the_image_and_are_of_its_size(coco_root: Path) -> None:
    split = read_split(find_instances(coco_root, "val"))
    found = detect(detector_of(), split, batch_size=4)
    shapes = {image["id"]: (image["height"], image["width"]) for image in split.images}
    assert found
    for each in found:
        height, width = shapes[each["image_id"]]
        left, top, across, down = each["bbox"]
        assert min(left, top, across, down) >= 0
        assert left + across <= width + 1e-3
        assert top + down <= height + 1e-3
        assert tuple(each["segmentation"]["size"]) == (height, width)
        assert each["category_id"] in (2, 5)


def test_the_same_seed_gives_the_same_detector_whatever_was_drawn_before(coco_root: Path) -> None:
    outcomes = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        detector = detector_of()
        before = torch.random.get_rng_state()
        losses = tuned(detector, coco_root, schedule(3))
        assert torch.equal(torch.random.get_rng_state(), before)
        outcomes.append((losses, detector.state_dict()))
    assert outcomes[0][0] == outcomes[1][0]
    assert all(torch.equal(outcomes[0][1][name], value) for name, value in outcomes[1][1].items())


def test_a_convolutional_backbone_learns_as_well(coco_root: Path) -> None:
    losses = tuned(detector_of(name="resnet10t"), coco_root, schedule(12, 1e-3))
    assert losses[-1] < losses[0]


def test_a_loss_that_is_no_number_says_what_to_do(coco_root: Path) -> None:
    detector = detector_of()
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.bias.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"at iteration 0 of 2 .*loss_classifier nan.*learning rate below 0\.003"):
        tuned(detector, coco_root, schedule(2))


def test_an_interrupt_says_what_is_lost(coco_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", stopped)
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        tuned(detector_of(), coco_root, schedule(2), tell=lines.append)
    assert "fine-tuning is lost" in lines[0]


def test_stopped_at_any_iteration_it_goes_on_to_the_same_detector(
    coco_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = detector_of()
    losses = tuned(whole, coco_root, schedule(4))
    kept = Kept(path=tmp_path / "evaluation" / "state.safetensors", fingerprint="a", seconds=0)
    step = torch.optim.AdamW.step
    lines: list[str] = []
    for stop in (3, 1):
        left = iter(range(stop))

        def stopped(self: Any, *args: Any, left: Any = left, **options: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return step(self, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", stopped)
            with contextlib.suppress(KeyboardInterrupt):
                tuned(detector_of(), coco_root, schedule(4), tell=lines.append, kept=kept)
    assert "stopped after about 3 of 4 iterations; the same command goes on" in lines[0]
    again = detector_of()
    assert tuned(again, coco_root, schedule(4), kept=kept) == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(RunError, match="must be of the run b, found the state of a"):
        tuned(detector_of(), coco_root, schedule(4), kept=dataclasses.replace(kept, fingerprint="b"))
    save_state(kept.path, {"losses": []}, fingerprint="a")
    with pytest.raises(RunError, match="is not of this fine-tuning"):
        tuned(detector_of(), coco_root, schedule(4), kept=kept)


def test_the_time_of_what_was_kept_is_kept(coco_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour a look at the clock: one at the beginning, then one an iteration for whether to keep, one for keeping."""
    split = read_split(find_instances(coco_root, "train"))
    images = DetectionImages(split, [(position, False) for position, _ in training_draws(split, 6, 0)])
    kept = Kept(path=tmp_path / "state.safetensors", fingerprint="a", seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning.time, "monotonic", itertools.count(step=3600.0).__next__)
        assert finetune(detector_of(), images, schedule(2), kept=kept)[1] == 0
    spent = load_state(kept.path)["seconds"]
    assert spent > 3600
    assert finetune(detector_of(), images, schedule(2), kept=kept)[1] == spent
    save_state(kept.path, {k: v for k, v in load_state(kept.path).items() if k != "seconds"}, fingerprint="a")
    assert finetune(detector_of(), images, schedule(2), kept=kept)[1] is None  # of an earlier release


def test_draws_go_round_the_images_with_objects_by_the_seed(coco_root: Path) -> None:
    split = read_split(find_instances(coco_root, "val"))
    draws = training_draws(split, 30, seed=1)
    assert draws == training_draws(split, 30, seed=1)
    assert draws != training_draws(split, 30, seed=2)
    positions = [position for position, _ in draws]
    assert all(sorted(positions[first : first + 3]) == [0, 1, 2] for first in range(0, 30, 3))
    assert 5 < sum(mirrored for _, mirrored in draws) < 25

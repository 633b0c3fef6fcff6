"""Feature maps, anchors and regions of backbones of each kind."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.evaluation.detection.model import (
    HierarchicalPyramid,
    SimpleFeaturePyramid,
    anchor_sides,
    build_detector,
    build_pyramid,
)

VIT: dict[str, Any] = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}


def vit(patch: int, **options: Any) -> Any:
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, patch_size=patch, **{**VIT, **options})


def swin() -> Any:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, img_size=128, window_size=4, embed_dim=12, depths=(1, 1, 1, 1)
    )


CASES: list[tuple[str, Any, int, list[int], type]] = [
    ("patch 8", lambda: vit(8), 64, [2, 4, 8, 16], SimpleFeaturePyramid),
    ("patch 16", lambda: vit(16), 64, [4, 8, 16, 32], SimpleFeaturePyramid),
    ("patch 2: no stride below one", lambda: vit(2, img_size=16), 16, [1, 2, 4], SimpleFeaturePyramid),
    ("patch 14: whole strides only", lambda: vit(14, img_size=56), 56, [7, 14, 28], SimpleFeaturePyramid),
    ("odd grid: nothing cut off", lambda: vit(16, img_size=48), 48, [4, 8, 16], SimpleFeaturePyramid),
    ("another size than trained at", lambda: vit(16), 96, [4, 8, 16, 32], SimpleFeaturePyramid),
    ("resnet", lambda: timm.create_model("resnet10t", num_classes=0), 64, [4, 8, 16, 32], HierarchicalPyramid),
    ("large images", lambda: timm.create_model("resnet10t"), 320, [4, 8, 16, 32, 64], HierarchicalPyramid),
    ("convnext", lambda: timm.create_model("convnext_atto", num_classes=0), 64, [4, 8, 16, 32], HierarchicalPyramid),
    ("swin", swin, 128, [4, 8, 16, 32], HierarchicalPyramid),
]


@pytest.mark.parametrize(("make", "size", "strides", "neck"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_levels_have_the_strides_that_they_tell(make: Any, size: int, strides: list[int], neck: type) -> None:
    pyramid = build_pyramid(make(), size, width=16).eval()
    assert list(pyramid.strides) == strides
    assert isinstance(pyramid.neck, neck)
    levels = pyramid(torch.rand(2, 3, size, size))
    assert tuple(levels) == pyramid.levels
    assert [tuple(level.shape) for level in levels.values()] == [(2, 16, size // s, size // s) for s in strides]


@pytest.mark.parametrize("make", [lambda: vit(8), lambda: timm.create_model("convnext_atto", num_classes=0)])
def test_every_level_looks_at_the_image_and_teaches_the_backbone(make: Any) -> None:
    pyramid = build_pyramid(make(), 64, width=16).eval()
    images = torch.rand(1, 3, 64, 64)
    first, second = pyramid(images), pyramid(images.flip(-1))
    assert all((first[name] - second[name]).abs().max() > 1e-3 for name in pyramid.levels)
    for name in pyramid.levels:
        pyramid.zero_grad()
        pyramid(images)[name].square().sum().backward()
        stem = next(p for p in pyramid.backbone.parameters() if p.ndim == 4)
        assert stem.grad is not None, name
        assert stem.grad.abs().max() > 0, name


def test_position_embeddings_are_resampled_not_drawn_anew() -> None:
    backbone = vit(16)
    with torch.no_grad():
        backbone.pos_embed.fill_(0.25)
    assert build_pyramid(backbone, 128, width=16).backbone.pos_embed.shape == (1, 8 * 8 + 1, 32)
    torch.testing.assert_close(backbone.pos_embed, torch.full((1, 65, 32), 0.25))


@pytest.mark.parametrize(("make", "size"), [(lambda: vit(16), 72), (lambda: timm.create_model("resnet10t"), 72)])
def test_a_size_that_does_not_fit_the_backbone_is_refused(make: Any, size: int) -> None:
    with pytest.raises(ConfigError, match=f"{size}.*(multiple|Choose another size)"):
        build_pyramid(make(), size, width=16)


@pytest.mark.parametrize(
    ("strides", "size", "expected"),
    [
        ((4, 8, 16, 32, 64), 1024, [32, 64, 128, 256, 512]),  # the paper's
        ((2, 4, 8, 16), 64, [8, 16, 32, 64]),
        ((4, 8, 16, 32), 64, [8, 16, 32, 64]),
        ((4, 8, 16, 32), 32, [8, 16, 32, 64]),
    ],
)
def test_anchors_reach_from_small_objects_to_the_whole_image(
    strides: tuple[int, ...], size: int, expected: list[int]
) -> None:
    assert anchor_sides(strides, size) == expected


def test_the_detector_normalises_as_the_backbone_was_trained_and_knows_its_strides() -> None:
    backbone = vit(14, img_size=56)
    backbone.pretrained_cfg["mean"], backbone.pretrained_cfg["std"] = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    detector = build_detector(backbone, classes=3, size=56, width=16)
    assert detector.transform.image_mean == [0.1, 0.2, 0.3]
    assert detector.transform.image_std == [0.5, 0.6, 0.7]
    detector.eval()([torch.rand(3, 20, 56)])  # flat: torchvision would take 56 / 20 rows for the stride
    assert detector.roi_heads.box_roi_pool.scales == [1 / 7, 1 / 14, 1 / 28]
    assert detector.roi_heads.mask_roi_pool.scales == [1 / 7, 1 / 14, 1 / 28]

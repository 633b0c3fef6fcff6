"""One small member of each family of timm serves as a student at its own input size, and gives what timm gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students import QueryConfig, Student, StudentConfig, Tap
from lfi_pipeline.students.backbone import build_backbone, choose_taps, input_size

PLAIN = {"depth": 3, "embed_dim": 48, "num_heads": 2}
THIN = {"depths": (1, 1, 2, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2)}


@dataclass(frozen=True)
class Family:
    """Arguments that make a member small, and what its automatic taps must be at `size`."""

    size: int
    widths: tuple[int, ...]
    grids: tuple[int, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    pooled: int = 0  # where it is not the last width


FAMILIES = {
    "vit_tiny_patch16_224": Family(224, (48,) * 3, (14,) * 3, PLAIN),
    "deit3_small_patch16_224": Family(224, (48,) * 3, (14,) * 3, PLAIN),
    "vit_small_patch14_reg4_dinov2": Family(518, (32,) * 3, (37,) * 3, PLAIN | {"embed_dim": 32}),
    "swin_tiny_patch4_window7_224": Family(224, (32, 64, 128), (28, 14, 7), THIN),
    "convnext_atto": Family(224, (16, 24, 32), (28, 14, 7), {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
    "resnet10t": Family(176, (128, 256, 512), (22, 11, 6)),
    "mobilenetv4_conv_small_050": Family(224, (32, 48, 480), (28, 14, 7), pooled=1280),
    "fastvit_t8": Family(256, (96, 192, 384), (32, 16, 8), {"layers": (1, 1, 1, 1)}, pooled=768),
    "efficientvit_b0": Family(224, (32, 64, 128), (28, 14, 7), pooled=1280),  # MIT
    "efficientvit_m0": Family(224, (64, 128, 192), (14, 7, 4)),  # MSRA
    "beit_base_patch16_224": Family(224, (48,) * 3, (14,) * 3, PLAIN),
    "eva02_tiny_patch14_224": Family(224, (192,) * 3, (16,) * 3, {"depth": 3}),
    "hiera_tiny_224": Family(224, (32, 64, 128), (28, 14, 7), {"embed_dim": 16, "stages": (1, 1, 1, 1)}),
    "tiny_vit_5m_224": Family(224, (128, 160, 320), (28, 14, 7), {"depths": (1, 1, 1, 1)}),
    "levit_128s": Family(224, (128, 256, 384), (14, 7, 4)),
    "edgenext_xx_small": Family(256, (48, 88, 168), (32, 16, 8)),
    "xcit_nano_12_p16_224": Family(224, (128,) * 3, (14,) * 3, {"depth": 3}),
    "pvt_v2_b0": Family(224, (64, 160, 256), (28, 14, 7)),
}


def _config(name: str, **options: Any) -> StudentConfig:
    return StudentConfig(name=name, kwargs=FAMILIES[name].kwargs, **options)


def _equal(left: Any, right: Any) -> None:
    """Some families' final features are a list of maps."""
    for a, b in zip(left, right, strict=True) if isinstance(left, list) else [(left, right)]:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_serves_at_its_own_size(name: str) -> None:
    family, config = FAMILIES[name], _config(name)
    torch.manual_seed(0)
    model = build_backbone(config)
    taps = choose_taps(model, config)
    assert input_size(model, config) == (family.size, family.size)
    assert tuple(tap.width for tap in taps) == family.widths
    assert tuple(tap.grid for tap in taps) == tuple((side, side) for side in family.grids)
    assert all(tap.stride >= min(8, 224 // family.grids[-1]) for tap in taps)
    assert [tap.depth for tap in taps] == sorted({tap.depth for tap in taps})
    assert taps[-1].depth == 1

    images = torch.randn(1, 3, family.size, family.size)
    model.eval()
    final, maps = model.forward_intermediates(images, indices=[tap.index for tap in taps], output_fmt="NCHW")
    assert [tuple(each.shape) for each in maps] == [(1, tap.width, *tap.grid) for tap in taps]
    with torch.no_grad():
        _equal(final, model.forward_features(images))
    pooled: Tensor = model.forward_head(final, pre_logits=True)
    assert pooled.shape == (1, family.pooled or family.widths[-1])
    with torch.no_grad():
        _equal(pooled, model(images))

    torch.stack([each.square().mean() for each in maps]).sum().add(pooled.square().mean()).backward()
    idle = [key for key, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not idle


@pytest.mark.parametrize("name", FAMILIES)
def test_measuring_leaves_nothing_behind(name: str) -> None:
    """Hooks that stayed would slow every step and keep a checkpoint from being compiled or exported."""
    config = _config(name)
    model = build_backbone(config)
    choose_taps(model, config)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("vit_small_patch14_reg4_dinov2", 224, 16),
        ("vit_tiny_patch16_224", 96, 6),
        ("deit3_small_patch16_224", 96, 6),
        ("swin_tiny_patch4_window7_224", 96, 3),
        ("convnext_atto", 200, 6),
        ("resnet10t", 200, 7),
        ("hiera_tiny_224", 96, 3),
    ],
)
def test_another_size_gives_another_grid(name: str, size: int, grid: int) -> None:
    student = Student(_config(name, image_size=size), classes=2, embedding_dim=8).eval()
    assert student.taps[-1].grid == (grid, grid)
    with torch.no_grad():
        final, maps = student.backbone.forward_intermediates(torch.randn(1, 3, size, size), output_fmt="NCHW")
    assert tuple(maps[-1].shape[2:]) == (grid, grid)
    assert student.backbone.forward_head(final, pre_logits=True).isfinite().all()


def test_a_size_that_a_model_cannot_take_names_its_own() -> None:
    config = StudentConfig(name="levit_128s", image_size=256)
    taps = choose_taps(build_backbone(config), config)
    assert taps[0].grid == (16, 16)
    for name, size in (("halonet_h1", 224), ("efficientformer_l1", 192)):
        config = StudentConfig(name=name, image_size=size)
        with pytest.raises(
            ConfigError, match=rf"{name} cannot give features of {size} by {size} .*its own size, 2"
        ) as caught:
            choose_taps(build_backbone(config), config)
        assert ": ." not in str(caught.value)


def test_prefix_tokens_are_in_no_map() -> None:
    """The class token and four registers: what they hold must not show at the first tap, before attention mixes it."""
    config = _config("vit_small_patch14_reg4_dinov2", image_size=56)
    model = build_backbone(config).eval()
    assert model.num_prefix_tokens == 5
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        (before,) = _unmixed(model, images)
        model.cls_token.add_(7)
        model.reg_token.sub_(7)
        (after,) = _unmixed(model, images)
    assert before.shape == (1, 32, 4, 4)
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def _unmixed(model: Any, images: Tensor) -> list[Tensor]:
    model.blocks[0] = torch.nn.Identity()
    features: list[Tensor] = model.forward_intermediates(
        images, indices=[0], output_fmt="NCHW", intermediates_only=True
    )
    return features


def test_a_size_may_differ_in_height_and_width() -> None:
    config = StudentConfig(
        name="vit_tiny_patch16_224", kwargs=PLAIN | {"img_size": (64, 96), "patch_size": (16, 8)}, taps=(0,)
    )
    model = build_backbone(config)
    assert input_size(model, config) == (64, 96)
    (tap,) = choose_taps(model, config)
    assert (tap.grid, tap.stride) == ((4, 12), 16)


def test_dynamic_image_size() -> None:
    config = StudentConfig(name="vit_tiny_patch16_224", kwargs=PLAIN | {"dynamic_img_size": True}, image_size=96)
    assert choose_taps(build_backbone(config), config)[0].grid == (6, 6)


@pytest.mark.parametrize(("size", "grid"), [(200, (7, 7)), (224, (7, 7)), (176, (6, 6))])
def test_a_padded_edge_does_not_change_the_stride(size: int, grid: tuple[int, int]) -> None:
    config = StudentConfig(name="resnet10t", image_size=size)
    tap = choose_taps(build_backbone(config), config)[-1]
    assert (tap.grid, tap.stride) == (grid, 32)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_tiny"])
def test_depth_of_a_pyramid_is_by_its_blocks(name: str) -> None:
    """Stages of 2, 2, 6, 2 (Swin-T) or 3, 3, 9, 3 blocks end at 1/6, 1/3, 5/6 and 1, not at quarters."""
    deep: dict[str, Any] = {
        "swin_tiny_patch4_window7_224": {"embed_dim": 16, "num_heads": (1, 1, 2, 2)},
        "convnext_tiny": {"dims": (8, 16, 24, 32)},
    }
    config = StudentConfig(name=name, image_size=224, kwargs=deep[name], taps=(0, 1, 2, 3))
    depths = [tap.depth for tap in choose_taps(build_backbone(config), config)]
    assert depths == pytest.approx([1 / 6, 1 / 3, 5 / 6, 1], abs=0.04)


@pytest.mark.parametrize(
    ("blocks", "expected"), [(1, [0]), (2, [0, 1]), (4, [0, 2, 3]), (5, [1, 2, 4]), (12, [3, 7, 11])]
)
def test_taps_of_a_plain_transformer_are_even(blocks: int, expected: list[int]) -> None:
    kwargs = {"depth": blocks, "embed_dim": 16, "num_heads": 1}
    config = StudentConfig(name="vit_tiny_patch16_224", kwargs=kwargs, image_size=32)
    taps = choose_taps(build_backbone(config), config)
    assert [tap.index for tap in taps] == expected
    assert [tap.depth for tap in taps] == [(index + 1) / blocks for index in expected]


def test_a_model_all_of_whose_grids_are_fine_has_even_taps() -> None:
    """Patches of 4 on 32 pixels: eight cells a side, finer than stride 8, and still met three times."""
    config = StudentConfig(name="vit_tiny_patch16_224", kwargs=PLAIN | {"depth": 6}, image_size=32, patch_size=4)
    taps = choose_taps(build_backbone(config), config)
    assert [(tap.index, tap.stride) for tap in taps] == [(1, 4), (3, 4), (5, 4)]


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.widths[0] != f.widths[-1]])
def test_a_pyramid_is_not_met_at_its_coarsest_grid_alone(name: str) -> None:
    config = _config(name)
    taps: tuple[Tap, ...] = choose_taps(build_backbone(config), config)
    assert taps[0].grid[0] > taps[-1].grid[0]


def test_queries_add_three_percent_or_less_to_a_small_vit() -> None:
    student = Student(StudentConfig(name="vit_small_patch16_224"), classes=80, embedding_dim=768, queries=QueryConfig())
    assert len(student.taps) == 3
    counts = student.parameter_counts()
    assert 0 < counts["queries"] <= 0.03 * counts["backbone"]

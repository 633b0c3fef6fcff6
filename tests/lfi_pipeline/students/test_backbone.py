"""Backbones of every family answer as students: taps, depths and shapes; what cannot work says so."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.students import Student, StudentConfig, Tap, pair_layers
from lfi_pipeline.students.backbone import build_backbone, choose_taps, input_size

SMALL = {"depth": 3, "embed_dim": 32, "num_heads": 2}
TINY = {"name": "vit_tiny_patch16_224", "image_size": 64, "patch_size": 16, "kwargs": SMALL}
SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}

# name -> (further options, (index, width, stride) of each automatic tap)
FAMILIES = {
    "vit_tiny_patch16_224": ({"kwargs": {**SMALL, "depth": 6}}, [(1, 32, 16), (3, 32, 16), (5, 32, 16)]),
    "deit3_small_patch16_224": ({"patch_size": 8, "kwargs": SMALL}, [(0, 32, 8), (1, 32, 8), (2, 32, 8)]),
    "vit_small_patch14_reg4_dinov2": ({"image_size": 56, "kwargs": SMALL}, [(0, 32, 14), (1, 32, 14), (2, 32, 14)]),
    "swin_tiny_patch4_window7_224": ({"kwargs": SWIN}, [(1, 32, 8), (2, 64, 16), (3, 128, 32)]),
    "test_convnext": ({}, [(1, 32, 8), (2, 48, 16), (3, 64, 32)]),
    "test_resnet": ({}, [(2, 48, 8), (3, 192, 16), (4, 96, 32)]),
    "mobilenetv4_conv_small_050": ({}, [(2, 32, 8), (3, 48, 16), (4, 480, 32)]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_taps_that_match_its_features(name: str) -> None:
    options, expected = FAMILIES[name]
    size = options.get("image_size", 64)
    student = Student(StudentConfig(**{"name": name, "image_size": 64} | options), classes=3, embedding_dim=8).eval()
    assert [(tap.index, tap.width, tap.stride) for tap in student.taps] == expected
    depths = [tap.depth for tap in student.taps]
    assert depths == sorted(set(depths))
    assert depths[0] > 0
    assert depths[-1] == 1

    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        features = student(images, with_taps=True)
    for tap, tokens, (rows, columns) in zip(student.taps, features.taps, features.grids, strict=True):
        assert (rows, columns) == (size // tap.stride, size // tap.stride)
        assert tokens.shape == (2, rows * columns, tap.width)
    assert features.pooled.shape[0] == 2
    assert features.logits.shape == (2, 3)


def test_patch_tokens_are_in_raster_order_without_registers() -> None:
    """A change in one patch of the image moves that patch's token the most, at the first block."""
    config = StudentConfig(name="vit_small_patch14_reg4_dinov2", image_size=56, kwargs=SMALL, taps=(0,))
    torch.manual_seed(0)
    student = Student(config, classes=3, embedding_dim=8).eval()
    image = torch.full((1, 3, 56, 56), 128, dtype=torch.uint8)
    changed = image.clone()
    changed[:, :, 14:28, 42:56] = 255  # row 1, column 3 of 4
    with torch.no_grad():
        moved = (student(changed, with_taps=True).taps[0] - student(image, with_taps=True).taps[0]).norm(dim=-1)[0]
    assert moved.argmax() == 1 * 4 + 3


def test_channels_last_families_are_put_in_order() -> None:
    """Swin computes in NHWC; its tap must still be tokens in raster order with channels last."""
    config = StudentConfig(name="swin_tiny_patch4_window7_224", image_size=64, kwargs=SWIN, taps=(1,))
    student = Student(config, classes=3, embedding_dim=8).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    stage = {}
    student.backbone.layers[1].register_forward_hook(lambda module, args, output: stage.update(nhwc=output))
    with torch.no_grad():
        tokens = student(images, with_taps=True).taps[0]
    assert stage["nhwc"].shape == (1, 8, 8, 32)
    torch.testing.assert_close(tokens, stage["nhwc"].flatten(1, 2))


def test_image_size_is_told_to_transformers_and_left_to_convolutions() -> None:
    transformer = StudentConfig(**TINY)
    model = build_backbone(transformer)
    assert model.patch_embed.grid_size == (4, 4)
    assert input_size(model, transformer) == (64, 64)
    convolution = StudentConfig(name="test_resnet", image_size=96)
    assert input_size(build_backbone(convolution), convolution) == (96, 96)
    own = StudentConfig(name="test_resnet")
    assert input_size(build_backbone(own), own) == (160, 160)


def test_backbone_has_no_head() -> None:
    assert build_backbone(StudentConfig(**TINY)).num_classes == 0


def test_asked_taps_are_taken_in_their_order() -> None:
    config = StudentConfig(**TINY, taps=(0, 2))
    assert [tap.index for tap in choose_taps(build_backbone(config), config)] == [0, 2]


@pytest.mark.parametrize("taps", [(3,), (-1,), (2, 0), (1, 1)])
def test_taps_that_do_not_exist_or_do_not_ascend_are_refused(taps: tuple[int, ...]) -> None:
    config = StudentConfig(**TINY, taps=taps)
    with pytest.raises(ConfigError, match=r"ascending indices from 0 to 2"):
        choose_taps(build_backbone(config), config)


def test_automatic_taps_of_a_single_coarse_stage() -> None:
    config = StudentConfig(name="test_resnet", image_size=64)
    model = build_backbone(config)
    assert all(tap.stride >= 8 for tap in choose_taps(model, config))
    assert choose_taps(model, StudentConfig(name="test_resnet", image_size=64, taps=(0,)))[0].stride == 2


@pytest.mark.parametrize(("wrong", "right"), [("resnt18", "resnet18"), ("vit_tny_patch16_224", "vit_tiny_patch16_224")])
def test_an_unknown_student_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{right}'") as caught:
        build_backbone(StudentConfig(name=wrong))
    assert "Choices: " in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "test_resnet", "patch_size": 8}, "patch_size"),
        ({"name": "test_resnet", "image_size": 64, "kwargs": {"no_such_option": 1}}, "no_such_option"),
        ({**TINY, "kwargs": {**SMALL, "num_heads": 5}}, "divisible"),
        ({**TINY, "kwargs": {**SMALL, "num_heads": 0}}, "num_heads"),
        ({**TINY, "kwargs": {**SMALL, "depth": 0}}, "depth"),
        ({**TINY, "image_size": 0}, "image_size must be 1 or more"),
    ],
)
def test_overrides_that_do_not_fit_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Student(StudentConfig(**options), classes=3, embedding_dim=8)  # type: ignore[arg-type]


def test_an_image_of_which_patches_leave_a_rim_is_refused() -> None:
    """A 14-pixel patch sees 56 of 64 pixels: a map over all of them would be out of place."""
    config = StudentConfig(name="vit_small_patch14_reg4_dinov2", image_size=64, kwargs=SMALL)
    with pytest.raises(ConfigError, match="multiple of the patch size 14"):
        Student(config, classes=3, embedding_dim=8)


def test_weights_that_cannot_be_fetched_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match="leave `pretrained` out"):
        build_backbone(StudentConfig(name="test_vit", pretrained=True))


def test_a_model_without_intermediate_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: nn.Identity())
    with pytest.raises(ConfigError, match="forward_intermediates"):
        build_backbone(StudentConfig(name="test_vit"))


def _taps(*depths: float) -> list[Tap]:
    return [Tap(i, depth, 8, 16, (4, 4)) for i, depth in enumerate(depths)]


def test_layers_are_paired_by_nearest_relative_depth() -> None:
    assert pair_layers(_taps(0.25, 0.6, 1.0), [0.25, 0.5, 0.75, 1.0]) == (0, 1, 3)
    assert pair_layers(_taps(0.3, 1.0), [1.0]) == (0, 0)


def test_of_two_layers_equally_near_the_deeper_is_taken() -> None:
    assert pair_layers(_taps(0.5), [0.25, 0.75]) == (1,)

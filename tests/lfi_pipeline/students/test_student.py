"""A student as a whole: what it counts, what it leaves out, and that taps never change what it predicts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lfi_pipeline.students import QueryConfig, Student, StudentConfig

SMALL = {"depth": 3, "embed_dim": 32, "num_heads": 2}
VIT = StudentConfig(name="vit_tiny_patch16_224", image_size=64, patch_size=16, kwargs=SMALL)
MODELS = {
    "vit": VIT,
    "vit, middle taps": StudentConfig(name=VIT.name, image_size=64, patch_size=16, kwargs=SMALL, taps=(0, 1)),
    "swin": StudentConfig(
        name="swin_tiny_patch4_window7_224",
        image_size=64,
        kwargs={"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
        taps=(0, 2),
    ),
    "convnext": StudentConfig(name="test_convnext", image_size=64, taps=(0, 1)),
    "resnet": StudentConfig(name="test_resnet", image_size=64, taps=(1, 3)),
    "mobilenetv4": StudentConfig(name="mobilenetv4_conv_small_050", image_size=64, taps=(1, 2)),
    "registers": StudentConfig(name="vit_small_patch14_reg4_dinov2", image_size=56, kwargs=SMALL),
}


def pictures(size: int = 64, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", MODELS)
def test_logits_are_the_same_with_and_without_taps(model: str) -> None:
    student = Student(MODELS[model], classes=4, embedding_dim=8).eval()
    images = pictures(student.size[0])
    with torch.no_grad():
        tapped, plain = student(images), student(images, with_taps=False)
    assert len(tapped.taps) == len(tapped.grids) == len(student.taps)
    assert plain.taps == []
    assert plain.grids == []
    torch.testing.assert_close(tapped.logits, plain.logits)
    torch.testing.assert_close(tapped.pooled, plain.pooled)


def test_parameters_are_counted_once_each_by_what_becomes_of_them() -> None:
    student = Student(VIT, classes=4, embedding_dim=8, queries=QueryConfig(width=16, heads=2), image_embedding=True)
    counts = student.parameter_counts()
    assert sum(counts.values()) == sum(p.numel() for p in student.parameters())
    assert counts["head"] == 32 * 4 + 4
    assert counts["projection"] == 32 * 8 + 8
    per_tap = 16 * 16 + 32 * 16 + 32 * 16 + 16 * 16  # W_q, W_k, W_v, W_o
    assert counts["queries"] == 8 * 16 + 16 + len(student.taps) * per_tap


def test_without_queries_there_is_nothing_but_backbone_and_head() -> None:
    student = Student(VIT, classes=4, embedding_dim=8)
    assert student.queries is None
    assert student.to_embedding is None
    counts = student.parameter_counts()
    assert counts["queries"] == counts["projection"] == 0
    assert {name.split(".")[0] for name in student.state_dict()} == {"backbone", "head"}


def test_the_seed_gives_every_objective_the_same_backbone_and_head() -> None:
    def seeded(**parts: object) -> Student:
        torch.manual_seed(7)
        return Student(VIT, classes=4, embedding_dim=8, **parts)  # type: ignore[arg-type]

    plain, queried = seeded().state_dict(), seeded(queries=QueryConfig(width=16, heads=2)).state_dict()
    assert len(queried) > len(plain)
    for name, value in plain.items():
        assert torch.equal(value, queried[name]), name


def test_pixels_are_normalised_as_the_backbone_wants_them() -> None:
    student = Student(VIT, classes=4, embedding_dim=8)
    mean, std = (
        torch.tensor(student.backbone.pretrained_cfg["mean"]),
        torch.tensor(student.backbone.pretrained_cfg["std"]),
    )
    seen = {}
    handle = student.backbone.patch_embed.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    images = pictures()
    student(images)
    handle.remove()
    torch.testing.assert_close(seen["x"], (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))


def test_building_leaves_the_student_in_training_mode_with_untouched_statistics() -> None:
    student = Student(MODELS["resnet"], classes=4, embedding_dim=8)
    assert all(module.training for module in student.modules())
    tracked = [m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert tracked
    assert all(int(m.num_batches_tracked) == 0 for m in tracked)

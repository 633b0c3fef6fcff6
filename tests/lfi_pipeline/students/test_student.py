"""A student as a whole: what it counts, what it leaves out, and that taps never change what it predicts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students import QueryConfig, Student, StudentConfig, Supervision, TextQueries

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
        tapped, plain = student(images, with_taps=True), student(images)
    assert len(tapped.taps) == len(tapped.grids) == len(student.taps)
    assert plain.taps == []
    assert plain.grids == []
    torch.testing.assert_close(tapped.logits, plain.logits)
    torch.testing.assert_close(tapped.pooled, plain.pooled)


def supervision(student: Student, words: int = 3) -> Supervision:
    generator = torch.Generator().manual_seed(3)
    cells = [rows * columns for rows, columns in (tap.grid for tap in student.taps)]
    return Supervision(
        words=torch.randn(2, words, 8, generator=generator),
        targets=[torch.randn(2, words, n, generator=generator).softmax(-1) for n in cells],
        weights=[torch.ones(2, words) for _ in cells],
    )


def test_the_grid_of_a_tap_is_known_before_any_image() -> None:
    for config in MODELS.values():
        student = Student(config, classes=4, embedding_dim=8).eval()
        with torch.no_grad():
            assert student(pictures(student.size[0]), with_taps=True).grids == [tap.grid for tap in student.taps]


PER_TAP = 16 * 16 + 32 * 16 + 32 * 16 + 16 * 16  # W_q, W_k, W_v, W_o


def test_parameters_are_counted_once_each_by_what_becomes_of_them() -> None:
    student = Student(VIT, classes=4, embedding_dim=8, queries=QueryConfig(width=16, heads=2))
    counts = student.parameter_counts()
    assert counts["backbone"] + counts["head"] + counts["queries"] == sum(p.numel() for p in student.parameters())
    assert counts["head"] == 32 * 4 + 4
    assert counts["queries"] == 8 * 16 + 16 + len(student.taps) * PER_TAP
    assert counts["kept_queries"] == 0


def test_without_queries_there_is_nothing_but_backbone_and_head() -> None:
    student = Student(VIT, classes=4, embedding_dim=8)
    assert student.queries is None
    counts = student.parameter_counts()
    assert counts["queries"] == counts["kept_queries"] == 0
    assert {name.split(".")[0] for name in student.state_dict()} == {"backbone", "head"}


def test_without_classes_there_is_no_head() -> None:
    student = Student(VIT, classes=0, embedding_dim=8, queries=QueryConfig(width=16, heads=2))
    features = student(pictures(), supervision(student))
    assert features.logits is None
    assert features.pooled.shape == (2, 32)
    assert features.interaction is not None
    assert {name.split(".")[0] for name in student.state_dict()} == {"backbone", "queries"}


def test_text_queries_run_only_under_supervision_and_never_change_the_logits() -> None:
    student = Student(VIT, classes=4, embedding_dim=8, queries=QueryConfig(width=16, heads=2)).eval()
    assert isinstance(student.queries, TextQueries)
    with torch.no_grad():
        plain, taught = student(pictures()), student(pictures(), supervision(student))
    assert plain.interaction is None
    assert taught.interaction is not None
    assert taught.taps == []
    assert [kl.shape for kl in taught.interaction.kl] == [(2, 3)] * len(student.taps)
    torch.testing.assert_close(plain.logits, taught.logits)


def test_divergence_teaches_the_backbone_up_to_the_last_tap() -> None:
    student = Student(VIT, classes=4, embedding_dim=8, queries=QueryConfig(width=16, heads=2))
    output = student(pictures(), supervision(student)).interaction
    assert output is not None
    torch.stack([kl.sum() for kl in output.kl]).sum().backward()
    for block in student.backbone.blocks:
        assert block.mlp.fc2.weight.grad.any()


def test_words_are_scored_from_the_final_state_of_the_student() -> None:
    student = Student(VIT, classes=4, embedding_dim=8, queries=QueryConfig(width=16, heads=2), presence=True)
    assert isinstance(student.queries, TextQueries)
    student.eval()
    taught = student(pictures(), supervision(student)).interaction
    scored = student(pictures(), Supervision(supervision(student).words)).interaction
    assert taught is not None
    assert scored is not None
    assert scored.kl == []
    scores = student.queries.presence_scores(scored)
    assert scores.shape == (2, 3)
    torch.testing.assert_close(scores, student.queries.presence_scores(taught))


def test_presence_without_queries_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs queries, got none"):
        Student(VIT, classes=4, embedding_dim=8, presence=True)


def test_names_in_a_checkpoint_are_stable() -> None:
    blocks = {f"queries.blocks.{tap}.w_{name}" for tap in range(3) for name in "qkvo"}
    seed = {"queries.seed.weight", "queries.seed.bias"}
    own = {
        "linear": {"head.weight", "head.bias"},
        "queries": {f"queries.{name}" for name in ("classes", "centre", "readout.weight", "readout.bias")},
    }
    for head, names in own.items():
        student = Student(VIT, classes=4, embedding_dim=8, queries=QueryConfig(width=16, heads=2), head=head)
        assert {name for name in student.state_dict() if not name.startswith("backbone.")} == names | blocks | seed


def test_the_seed_gives_every_objective_the_same_backbone_and_head() -> None:
    def seeded(**parts: object) -> Student:
        torch.manual_seed(7)
        return Student(VIT, classes=4, embedding_dim=8, **parts)  # type: ignore[arg-type]

    plain = seeded().state_dict()
    queried = seeded(queries=QueryConfig(width=16, heads=2)).state_dict()
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

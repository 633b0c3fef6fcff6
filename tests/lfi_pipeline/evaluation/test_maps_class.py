"""Grad-CAM of a student's own logits: against hooks and one backward pass a pair, and on students made to look."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.evaluation.maps import class_maps
from lfi_pipeline.students import QueryConfig, Student, StudentConfig

PLAIN = {"depth": 3, "embed_dim": 32, "num_heads": 2}
THIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
CLASSES = 5


def vit(**kwargs: Any) -> StudentConfig:
    return StudentConfig(name="vit_tiny_patch16_224", image_size=64, patch_size=16, kwargs=PLAIN | kwargs)


AVERAGED = vit(global_pool="avg")
STUDENTS: dict[str, tuple[StudentConfig, str]] = {
    "vit, averaged": (AVERAGED, "blocks.2"),
    "vit, averaged, middle taps": (
        StudentConfig(name=AVERAGED.name, image_size=64, patch_size=16, kwargs=AVERAGED.kwargs, taps=(0, 1)),
        "blocks.1",
    ),
    "vit, class token": (vit(), "blocks.1"),
    "swin": (StudentConfig(name="swin_tiny_patch4_window7_224", image_size=64, kwargs=THIN), "layers.3"),
    "convnext": (StudentConfig(name="test_convnext", image_size=64), "stages.3"),
    "resnet": (StudentConfig(name="test_resnet", image_size=64), "layer4"),
}
"""Student -> its config, and the module whose output its logits are made from."""


def made(config: StudentConfig, *, queried: bool = False) -> Student:
    torch.manual_seed(0)
    queries = QueryConfig(width=16, heads=2) if queried else None
    return Student(config, classes=CLASSES, embedding_dim=8, queries=queries)


def pictures(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


IMAGE_OF, LABELS = torch.tensor([2, 0, 2, 2, 1]), torch.tensor([1, 4, 1, 0, 2])


def by_hooks(student: Student, source: str, image: Tensor, label: int) -> Tensor:
    """One image, one class: equations 1 and 2 on what a module gave, with the gradient that autograd keeps there."""
    kept: list[Tensor] = []
    module = student.backbone.get_submodule(source)
    handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    logits = student.eval()(image[None]).logits
    handle.remove()
    (output,) = kept
    output.retain_grad()
    logits[0, label].backward()
    student.zero_grad()
    features, gradient = output.detach()[0], output.grad[0]
    if features.ndim == 2:  # tokens, the class token first
        side = round((len(features) - 1) ** 0.5)
        features, gradient = (t[1:].T.reshape(-1, side, side) for t in (features, gradient))
    elif source.startswith("layers"):  # swin: channels last
        features, gradient = features.movedim(-1, 0), gradient.movedim(-1, 0)
    alpha = torch.stack([channel.sum() / channel.numel() for channel in gradient])
    found = torch.stack([a * channel for a, channel in zip(alpha, features, strict=True)]).sum(0).clamp(min=0)
    return found / found.sum() if found.any() else found


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("queried", [False, True])
def test_maps_are_those_of_one_backward_pass_a_pair(name: str, queried: bool) -> None:
    config, source = STUDENTS[name]
    student = made(config, queried=queried)
    found = class_maps(student, pictures(), IMAGE_OF, LABELS)
    expected = [by_hooks(student, source, pictures()[i], c) for i, c in zip(IMAGE_OF, LABELS.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)
    assert found.dtype == torch.float32
    assert found.sum((1, 2)).gt(0.999).sum() >= 3


def unmixed() -> Student:
    """A ViT whose tokens are the patches' mean red, green and blue: its logit of class c is the mean over patches."""
    student = made(AVERAGED)
    backbone = student.backbone
    backbone.norm = backbone.fc_norm = nn.Identity()
    with torch.no_grad():
        for block in backbone.blocks:
            for weight in (block.attn.proj.weight, block.attn.proj.bias, block.mlp.fc2.weight, block.mlp.fc2.bias):
                weight.zero_()
        backbone.pos_embed.zero_()
        backbone.patch_embed.proj.weight.zero_()
        backbone.patch_embed.proj.bias.zero_()
        assert student.head is not None
        student.head.weight.zero_()
        for colour in range(3):
            backbone.patch_embed.proj.weight[colour, colour] = 1 / 256
            student.head.weight[colour, colour] = 1
    return student


def test_a_logit_made_of_one_patch_has_its_map_there() -> None:
    """A red patch on black is all that speaks for class 0; class 3 is made of nothing, and has no map."""
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[0, 0, 16:32, 48:64] = 255
    images[1, 1, 48:64, 0:16] = 255
    student = unmixed()
    student.mean.zero_()  # black is 0, so that other patches speak neither for nor against
    found = class_maps(student, images, torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 3]))
    expected = torch.zeros(4, 4, 4)
    expected[0, 1, 3] = expected[1, 3, 0] = 1
    torch.testing.assert_close(found, expected)


def test_what_speaks_against_a_class_is_left_out() -> None:
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[0, 0, :16, :16], images[0, 0, 16:32, :16] = 255, 128
    student = unmixed()
    student.mean.fill_(64.0)  # black is against red
    found = class_maps(student, images, torch.tensor([0]), torch.tensor([0]))
    expected = F.one_hot(torch.tensor(0), 16).view(1, 4, 4) * 191.0 + F.one_hot(torch.tensor(4), 16).view(1, 4, 4) * 64
    torch.testing.assert_close(found, expected / 255)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_head_that_says_nothing_gives_maps_of_zeros(name: str) -> None:
    student = made(STUDENTS[name][0])
    assert student.head is not None
    nn.init.zeros_(student.head.weight)
    found = class_maps(student, pictures(), IMAGE_OF, LABELS)
    assert found.shape == (5, *student.taps[-1].grid)
    assert not found.any()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("training", [False, True])
def test_callers_may_have_gradients_off_and_nothing_is_left_in_the_student(context: Any, training: bool) -> None:
    student = made(STUDENTS["resnet"][0], queried=True).train(training)
    expected = class_maps(made(STUDENTS["resnet"][0], queried=True), pictures(), IMAGE_OF, LABELS)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with context():
        found = class_maps(student, pictures(), IMAGE_OF, LABELS)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert student.training is training
    assert all(weight.grad is None and weight.requires_grad for weight in student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_frozen_weights_do_not_matter() -> None:
    student, frozen = made(AVERAGED), made(AVERAGED).requires_grad_(False)
    found = class_maps(frozen, pictures(), IMAGE_OF, LABELS)
    torch.testing.assert_close(found, class_maps(student, pictures(), IMAGE_OF, LABELS))
    assert not any(weight.requires_grad for weight in frozen.parameters())


def test_no_pairs_give_no_maps() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert class_maps(made(AVERAGED), pictures(), none, none).shape == (0, 4, 4)


def test_a_student_without_a_head_is_refused() -> None:
    student = Student(AVERAGED, classes=0, embedding_dim=8)
    with pytest.raises(ConfigError, match="a student with a head"):
        class_maps(student, pictures(), IMAGE_OF, LABELS)


@pytest.mark.parametrize("change", [nn.Tanh, lambda: nn.Dropout(0.0)])
def test_features_computed_on_the_side_are_refused(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of them would not say what the logits are made from; what hands values on as they are is no harm."""
    student = made(AVERAGED)
    original = student.backbone.forward_intermediates

    def changed(*args: Any, **kwargs: Any) -> Any:
        final, maps = original(*args, **kwargs)
        return final, [change().eval()(each) for each in maps]

    monkeypatch.setattr(student.backbone, "forward_intermediates", changed)
    if change is nn.Tanh:
        with pytest.raises(ConfigError, match="computed on the side"):
            class_maps(student, pictures(), IMAGE_OF, LABELS)
    else:
        assert class_maps(student, pictures(), IMAGE_OF, LABELS).any()

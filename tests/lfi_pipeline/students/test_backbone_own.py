"""A network of one's own as a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import timm
import torch
from torch import Tensor, nn

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students import QueryConfig, Student, StudentConfig
from lfi_pipeline.students.backbone import as_backbone

QUERIES = QueryConfig(width=16, heads=2)


class Own(nn.Module):
    tap_channels: Sequence[int] = (6, 10)
    tap_reductions: Sequence[int] = (4, 8)
    num_features = 10
    image_size = 32

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 10, 2, 2)

    def forward_taps(self, images: Tensor) -> list[Tensor]:
        first = self.one(images).relu()
        return [first, self.two(first)]


def student(module: nn.Module, head: str = "queries") -> Student:
    torch.manual_seed(0)
    config = StudentConfig(name=type(module).__name__, image_size=32)
    return Student(
        config, classes=3, embedding_dim=5, queries=QUERIES, head=head,
        class_embeddings=torch.randn(3, 5), backbone=module,
    )  # fmt: skip


@pytest.mark.parametrize("head", ["queries", "linear"])
def test_an_own_network_learns_under_either_head(head: str) -> None:
    made = student(Own(), head)
    assert [(tap.width, tap.stride, tap.grid) for tap in made.taps] == [(6, 4, (8, 8)), (10, 8, (4, 4))]
    features = made(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), with_taps=True)
    assert features.logits is not None
    assert features.logits.shape == (2, 3)
    assert features.pooled.shape == (2, 10)
    features.logits.square().sum().backward()
    parameters = dict(made.backbone.named_parameters())
    assert parameters["model.one.weight"].grad is not None


def test_a_timm_module_is_taken_as_it_is() -> None:
    module = timm.create_model("resnet10t")
    made = student(module)
    assert made.backbone is module
    assert [tap.stride for tap in made.taps] == [8, 16, 32]


def test_what_is_no_backbone_is_told_what_one_is() -> None:
    with pytest.raises(ConfigError, match="forward_taps, tap_channels"):
        as_backbone(nn.Linear(2, 2))


@pytest.mark.parametrize(("name", "value"), [("num_features", 6), ("tap_reductions", (4,)), ("tap_channels", ())])
def test_attributes_that_contradict_each_other_are_refused(name: str, value: object) -> None:
    module = Own()
    setattr(module, name, value)
    with pytest.raises(ConfigError, match="tap_channels"):
        as_backbone(module)

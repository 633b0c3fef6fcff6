"""Small students of several families, as if trained (no weight is as it was initialised), and one trained run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lfi_pipeline.students import QueryConfig, Student, StudentConfig
from lfi_pipeline.training import DataConfig, RuntimeConfig, TrainConfig, train

VIT = StudentConfig(
    name="vit_tiny_patch16_224",
    image_size=48,
    patch_size=16,
    kwargs={"depth": 2, "embed_dim": 32, "num_heads": 2},
)
FAMILIES = {
    "vit": VIT,
    "vit, class token pooled by mean": StudentConfig(
        name="vit_tiny_patch16_224", image_size=32, kwargs={**VIT.kwargs, "global_pool": "avg", "class_token": False}
    ),
    "dinov2 with registers": StudentConfig(name="vit_small_patch14_reg4_dinov2", image_size=56, kwargs=VIT.kwargs),
    "swin": StudentConfig(
        name="swin_tiny_patch4_window7_224",
        image_size=64,
        kwargs={"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    ),
    "convnext": StudentConfig(name="convnext_atto", image_size=64, kwargs={"depths": [1] * 4, "dims": [8, 8, 16, 16]}),
    "resnet": StudentConfig(name="resnet18", image_size=64, kwargs={"layers": [1] * 4, "channels": [8, 8, 16, 16]}),
    "mobilenetv4": StudentConfig(name="mobilenetv4_conv_small_035", image_size=64),
    "convolution as head": StudentConfig(
        name="resnetv2_50", image_size=64, kwargs={"layers": [1] * 4, "channels": [16, 16, 32, 32], "stem_chs": 8}
    ),
    "head after a batch norm": StudentConfig(name="efficientvit_m0"),
    "two heads": StudentConfig(name="deit_tiny_distilled_patch16_224", kwargs=VIT.kwargs),
}
APART = ("head after a batch norm", "two heads")
CLASSES = tuple(f"class {number}" for number in range(5))


@pytest.fixture(scope="session")
def make_student() -> Callable[[str], Student]:
    """Return the student of that name in `FAMILIES`, every weight and running statistic moved, in evaluation mode."""

    def make(family: str) -> Student:
        torch.manual_seed(1)
        student = Student(FAMILIES[family], classes=len(CLASSES), embedding_dim=8)
        with torch.no_grad():
            for name, tensor in student.state_dict().items():
                if name.endswith("running_var"):
                    tensor.add_(0.1 * torch.rand_like(tensor))
                elif tensor.is_floating_point():
                    tensor.add_(0.1 * torch.randn_like(tensor))
        return student.eval()

    return make


@pytest.fixture(scope="session")
def _trained(tiny_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lfi-0"
    data = DataConfig(targets=tiny_targets, epochs=1, batch_size=8)
    config = TrainConfig(data=data, student=VIT, queries=QueryConfig(width=16, heads=2))
    train([(config, out)], RuntimeConfig(device="cpu", track=()), command="lfi train --targets shards")
    return out


@pytest.fixture
def run(_trained: Path, tmp_path: Path) -> Path:
    """A copy, free to write into, of a trained run."""
    return Path(shutil.copytree(_trained, tmp_path / "lfi-0"))

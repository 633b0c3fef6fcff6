"""Arguments of a student: those of an architecture pass, whatever else timm would take does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.students import pretrained as arguments
from lfi_pipeline.students.backbone import build_backbone
from lfi_pipeline.students.pretrained import MOST_CELLS, bounded_build, check_arguments

NAME = "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    "given",
    [
        {"depth": 3, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.1, "act_layer": "gelu", "qkv_bias": False},
        {"depths": [1, 1, 2, 1], "dims": (8, 8, 16, 16)},
        {"img_size": (64, 96), "patch_size": (16, 8)},
        {"pretrained_cfg_overlay": {"file": "mine.safetensors"}},
    ],
)
def test_arguments_of_an_architecture_pass(given: dict[str, Any]) -> None:
    check_arguments(NAME, given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"checkpoint_path": "x.pth"}, "arguments of an architecture.*'checkpoint_path'"),
        ({"pretrained_cfg": {"file": "x.safetensors"}}, "arguments of an architecture"),
        ({"cache_dir": "/tmp"}, "arguments of an architecture"),
        ({"device": "cuda"}, "arguments of an architecture"),
        ({"block_fn": "os.system"}, "arguments of an architecture"),
        ({"pretrained_cfg_overlay": {"file": "x.bin"}}, "one file of weights"),
        ({"pretrained_cfg_overlay": {"url": "http://x"}}, "one file of weights"),
        ({"pretrained_cfg_overlay": {"file": "x.safetensors", "custom_load": True}}, "one file of weights"),
        ({"pretrained_cfg_overlay": "x.safetensors"}, "one file of weights"),
        ({"act_layer": "os.system('x')"}, "act_layer must be"),
        ({"act_layer": {"a": 1}}, "act_layer must be"),
        ({"depth": 100_000}, "depth must be a whole number from 0 to 1000"),
        ({"layers": [1, 1, 100_000, 1]}, "layers must be"),
        pytest.param({"embed_dim": 10**5000}, "must be .*too long to print|got a number of 16610 bits", id="digits"),
        ({"embed_dim": -8}, "embed_dim must be"),
        ({"mlp_ratio": float("nan")}, "must be .*mlp_ratio|mlp_ratio must be"),
        ({"mlp_ratio": 1e300}, "mlp_ratio must be"),
        ({"depths": [[1]]}, "depths must be"),
        ({"depths": [1] * 65}, "depths must be"),
        ({"img_size": 10**6}, "img_size must be|image size must be"),
        ({"img_size": [64, 64, 64]}, "image size must be"),
        ({"img_size": 4096, "patch_size": 1}, f"at most {MOST_CELLS} patches"),
    ],
)
def test_anything_else_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_backbone(StudentConfig(name=NAME, kwargs=given))


def test_sizes_of_the_settings_are_bounded_as_well() -> None:
    with pytest.raises(ConfigError, match=r"image size must be 1 to 4096"):
        build_backbone(StudentConfig(name=NAME, image_size=10**9))
    with pytest.raises(ConfigError, match=f"at most {MOST_CELLS} patches wide"):
        build_backbone(StudentConfig(name=NAME, image_size=4096, patch_size=2))


def test_what_is_built_is_counted_while_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each argument is in bounds, their product is not; a linear map's memory is not touched before it is counted."""
    monkeypatch.setattr(arguments, "most_parameters", lambda: 1_000_000)
    with pytest.raises(ConfigError, match=r"at most 1,000,000 parameters"):
        build_backbone(StudentConfig(name=NAME, kwargs={"depth": 900, "embed_dim": 16_000, "num_heads": 4}))
    with pytest.raises(ConfigError, match=r"small must have at most 10 parameters"), bounded_build("small", 10):
        nn.Linear(3, 3)
    with bounded_build("small", 12):
        nn.Linear(3, 3)
    nn.Linear(30, 30)  # nothing is counted afterwards
    with pytest.raises(ConfigError, match="parts"), bounded_build("long"):
        nn.Sequential(*[nn.Identity()] * 30_000)
    with pytest.raises(ConfigError, match="numbers in buffers"), bounded_build("wide"):
        nn.Module().register_buffer("b", torch.empty(1).expand(2**40))


def test_memory_bounds_what_is_built() -> None:
    assert 0 < arguments.most_parameters() <= arguments.MOST_NUMBERS

"""What runs are called."""

from __future__ import annotations

from typing import Any

import pytest

from lfi_pipeline.core.options import build
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.run_dir import run_name


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "resnet18-lfi-0"),
        ({"objective": "none", "seed": 3}, "resnet18-none-3"),
        ({"maps": "shuffled", "state": "reset"}, "resnet18-lfi-shuffled-reset-0"),
        ({"head": "linear", "objective": "embedding", "state": "reset"}, "resnet18-linear-embedding-0"),  # no queries
        ({"student": "hf-hub:timm/resnet18"}, "hf-hub:timm-resnet18-lfi-0"),
    ],
)
def test_a_run_is_named_after_what_it_is(settings: dict[str, Any], name: str) -> None:
    assert run_name(build(TrainConfig, {"targets": "x", "student": "resnet18"} | settings)) == name

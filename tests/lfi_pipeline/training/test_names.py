"""What runs are called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lfi_pipeline.training.names import describe_taps, run_name
from lfi_pipeline.training.settings import config_of


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "resnet18-lfi-0"),
        ({"objective": "none", "seed": 3}, "resnet18-none-3"),
        ({"maps": "shuffled", "state": "reset"}, "resnet18-lfi-shuffled-reset-0"),
        ({"queries": "learned"}, "resnet18-lfi-learned-0"),
        ({"objective": "embedding", "queries": "learned", "state": "reset"}, "resnet18-embedding-0"),  # has no queries
        ({"student": "hf-hub:timm/resnet18"}, "hf-hub:timm-resnet18-lfi-0"),
    ],
)
def test_a_run_is_named_after_what_it_is(settings: dict[str, Any], name: str) -> None:
    assert run_name(config_of({"targets": "x", "student": "resnet18"} | settings)) == name


def test_taps_and_their_layers() -> None:
    taps: Any = [SimpleNamespace(index=1, depth=1 / 3), SimpleNamespace(index=5, depth=1.0)]
    assert describe_taps(taps, [0, 3]) == "1 (depth 0.33) <- teacher layer 0, 5 (depth 1.00) <- teacher layer 3"

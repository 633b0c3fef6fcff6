"""lfi evaluate --protocol detection"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHORT = ("--iterations", "1", "--batch-size", "2", "--detection-width", "16", "--lr", "0.001")


def test_box_and_mask_ap_of_a_run_and_of_the_control(lfi: Callable[..., Any], trained: Path) -> None:
    words = ("evaluate", trained, "--protocol", "detection", *SHORT, "--device", "cpu")
    found = lfi(*words, "--from", "scratch", "--seed", "4", "--json").json["runs"][str(trained)]["detection"]
    assert list(found["scores"]) == ["box_ap", "box_ap50", "mask_ap", "mask_ap50"]
    assert (found["settings"]["source"], found["settings"]["seed"]) == ("scratch", 4)
    assert found["settings"]["iterations"] == 1
    assert not list((trained / "evaluation").glob("detections-*"))
    shown = lfi(*words, "--keep-detections")
    assert shown.code == 0
    assert "box AP" in shown.out
    assert "mask AP50" in shown.out
    assert len(list((trained / "evaluation").glob("detection-*.json"))) == 2  # control and run lie side by side
    assert len(list((trained / "evaluation").glob("detections-*.json.gz"))) == 1


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("UnknownNameError", ("--from", "skratch"), "Choices: run, scratch"),
        ("DatasetError", ("--detection-data", "nowhere"), "must hold one annotations/instances_train"),
        ("ConfigError", ("--image-size", "72"), "multiple of the backbone's patch size"),
    ],
)
def test_what_cannot_work_is_told(
    fails: Callable[..., str], trained: Path, kind: str, options: tuple[str, str], told: str
) -> None:
    said = fails(kind, "evaluate", trained, "--protocol", "detection", *SHORT, *options)
    assert told in " ".join(said.split())

"""lfi train, asked to stop while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lfi_pipeline.training.running import assert_same_run

ROOT = Path(__file__).resolve().parents[2]
STUDENT = (
    *("--student", "vit_tiny_patch16_224", "--image-size", "64", "--patch-size", "16"),
    *("--student-arg", "depth=3", "--student-arg", "embed_dim=32", "--student-arg", "num_heads=2"),
    *("--query-width", "16", "--query-heads", "2", "--batch-size", "4", "--epochs", "12", "--device", "cpu"),
)
ENDED = {"start_new_session": True, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


def started(targets: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(str(ROOT / part) for part in (".", "cli", "kernels"))
    words = [sys.executable, "-m", "lfi_cli", "train", "--targets", str(targets), *STUDENT, "--out", str(out), *more]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}, **ENDED)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_stop_saves_says_how_to_go_on_and_costs_nothing(
    lfi: Callable[..., Any], tiny_targets: Path, tmp_path: Path, number: signal.Signals, whole_group: bool
) -> None:
    """Ctrl-C reaches the loader's workers too; SIGTERM comes to the process that was started."""
    cut = started(tiny_targets, tmp_path / "cut", "--workers", "2")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while cut.poll() is None and not (metrics.is_file() and metrics.read_text().count("train") > 8):
        time.sleep(0.005)
    (os.killpg if whole_group else os.kill)(cut.pid, number)
    out, err = cut.communicate(timeout=60)
    assert cut.returncode == 130, err[-2000:]
    assert "Traceback" not in err
    assert "same command" in err
    assert out == ""
    assert (tmp_path / "cut" / "checkpoints" / "state.safetensors").is_file()
    assert not (tmp_path / "cut" / "summary.json").exists()

    for name in ("cut", "whole"):
        assert lfi("train", "--targets", tiny_targets, *STUDENT, "--out", tmp_path / name).code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")

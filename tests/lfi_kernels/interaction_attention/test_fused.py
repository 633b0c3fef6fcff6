"""The fused kernels without a GPU: their tests under Triton's interpreter, and the compiler's report for sm_90.

Both in processes of their own: whether Triton interprets is settled once, when its kernels are first defined.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]
FORWARD_BACKWARD = ("forward", "backward")
SHARED_KIB_OF_SM_90 = 227
# A thread has 255 registers at most; what does not fit goes to its stack, once a tile, and never in the loops over D.
# Compilers differ: 3.5, 3.6 and 3.9 of triton were seen. The forward kernel spills where tiles take turns. The backward
# one holds scores, their gradient and the target at once, and with layer norm two more rows of numbers. fp32 targets
# beside 16-bit features spill most: the cache stores uint8.
STACK_BYTES = {"forward": 64, "forward, tiles in turn": 256, "backward": 768}
STACK_BYTES_FP32_TARGET = 1152
STACK_BYTES_FP32 = 224
SPILLS_IN_WALKS_FP32 = 4


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "LFI_", "PYTEST"))}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"} | changes


def test_they_match_the_reference_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "--noconftest"]
    command += ["-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / "interpreted")],
        env=environment(TRITON_INTERPRET="1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """The report. Triton's own cache is keyed by source and compiler: only what changed is compiled again."""
    done = subprocess.run(
        [sys.executable, "-m", "lfi_kernels.interaction_attention.triton_report"],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_the_report_covers_every_model_and_both_kernels(compiled: list[dict[str, Any]]) -> None:
    found = {(each["model"], each["kernel"]) for each in compiled if each["patches"] == 196 and each["words"] == 16}
    assert found >= {(model, kernel) for model in ("ViT-T", "ViT-S", "ViT-B", "ViT-L") for kernel in FORWARD_BACKWARD}


def test_they_fit_a_hopper_gpu(compiled: list[dict[str, Any]]) -> None:
    for each in compiled:
        in_turn = ", tiles in turn" if each["kernel"] == "forward" and each["patches"] > 256 else ""
        limit = STACK_BYTES[each["kernel"] + in_turn] if each["layer_norm"] else 16
        if each["target"] == "fp32":
            limit = STACK_BYTES_FP32_TARGET
        if each["dtype"] == "fp32":
            limit = STACK_BYTES_FP32
        assert each["stack_bytes"] <= limit, each
        assert each["spills_in_walks"] <= (SPILLS_IN_WALKS_FP32 if each["dtype"] == "fp32" else 0), each
        assert each["shared_kib"] <= SHARED_KIB_OF_SM_90, each


def test_their_products_are_those_of_hopper(compiled: list[dict[str, Any]]) -> None:
    for each in compiled:
        assert each["hopper_products"] > 0, each
        assert each["older_products"] == 0, each

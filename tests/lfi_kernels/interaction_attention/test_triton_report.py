"""What the compiler makes of the kernels for sm_90, without a GPU: no races, no spills in loops, room enough.

Triton's own cache is keyed by source and compiler: only what changed is compiled again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lfi_kernels.interaction_attention.tiles import OF_16_BITS, OF_32_BITS

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
SHARED_KIB_OF_SM_90 = 227
# A thread has 255 registers at most; what does not fit goes to its stack. Compilers differ: 3.6 and 3.8 were seen.
STACK_BYTES = 64

every_tile = pytest.mark.skipif(
    os.environ.get("LFI_LONG_TESTS") != "1", reason="compiling every tile takes minutes: LFI_LONG_TESTS=1 runs it"
)


def lines(*command: str) -> list[dict[str, Any]]:
    """What a script prints, a JSON object a line; not under the interpreter."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "LFI_", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, *command],
        env=kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def usual() -> list[dict[str, Any]]:
    """The usual tiles, on the shapes of students."""
    return lines("-m", "lfi_kernels.interaction_attention.triton_report")


@pytest.fixture(scope="module")
def every() -> list[dict[str, Any]]:
    """Every tile of the lists."""
    return lines("-m", "lfi_kernels.interaction_attention.triton_report", "--all")


def test_no_usual_tile_races(usual: list[dict[str, Any]]) -> None:
    assert sum(each["pipelined"] for each in usual) >= 40  # there is something to race
    for each in usual:
        assert each["races"] == [], each


@every_tile
def test_no_other_tile_races(every: list[dict[str, Any]]) -> None:
    for each in every:
        assert each["races"] == [], each


@every_tile
def test_every_tile_was_looked_at(every: list[dict[str, Any]]) -> None:
    for dtype, lists in (("bf16", OF_16_BITS), ("fp32", OF_32_BITS)):
        for kernel, tiles in lists.items():
            names = ("queries_kernel", "keys_kernel") if kernel == "backward" else (f"{kernel}_kernel",)
            found = {
                (each["kernel"], each["tile"])
                for each in every
                if each["kernel"] in names and each["shape"]["dtype"] == dtype
            }
            assert len(found) == len(tiles) * len(names), (dtype, kernel)
    assert sum(each["pipelined"] for each in every) >= 40  # there is something to race


def test_tiles_that_are_copied_ahead_are_seen_in_every_kernel(usual: list[dict[str, Any]]) -> None:
    """Small ones are not, where a product may read registers: then nothing can race."""
    for each in usual:
        if each["shape"]["dtype"] != "fp32" and each["shape"]["patches"] >= 196:
            assert each["pipelined"] >= 2, each


def test_the_report_covers_every_model_and_every_kernel(usual: list[dict[str, Any]]) -> None:
    of_width = {"project_kernel", "features_kernel", "weights_kernel"}
    for model in ("ViT-T", "ViT-S", "ViT-B", "ViT-L"):
        assert {each["kernel"] for each in usual if each["shape"]["model"] == model} >= of_width
    assert {each["kernel"] for each in usual} == of_width | {"forward_kernel", "queries_kernel", "keys_kernel"}


def test_they_fit_a_hopper_gpu(usual: list[dict[str, Any]]) -> None:
    for each in usual:
        assert each["stack_bytes"] <= STACK_BYTES, each
        assert each["spills_in_loops"] == 0, each
        assert each["shared_kib"] <= SHARED_KIB_OF_SM_90, each


def test_products_of_16_bits_are_those_of_hopper(usual: list[dict[str, Any]]) -> None:
    for each in usual:
        if each["shape"]["dtype"] != "fp32" and each["shape"]["patches"] >= 196:
            assert each["hopper_products"] > 0, each
            assert each["older_products"] == 0, each

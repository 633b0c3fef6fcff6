"""The fused kernels under Triton's interpreter, in a process of its own: it must be told before triton is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]

if torch.cuda.is_available():
    pytest.skip("the GPU runs the tests in interpreted/ itself", allow_module_level=True)
pytest.importorskip("triton")


@pytest.mark.parametrize(
    "long",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                os.environ.get("LFI_LONG_TESTS") != "1",
                reason="every tile, and shapes of ViTs, take the interpreter minutes: LFI_LONG_TESTS=1 runs them",
            ),
        ),
    ],
    ids=["short", "long"],
)
def test_they_match_the_reference_under_the_interpreter(long: bool) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "LFI_", "PYTEST"))}
    env = kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    env |= {"LFI_LONG_TESTS": "1"} if long else {}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "--noconftest"]
    command += ["-q", "-rs", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / "interpreted")],
        env=env | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all("LFI_LONG_TESTS=1" in line for line in skipped), skipped
    assert bool(skipped) != long

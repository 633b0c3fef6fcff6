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


def test_they_match_the_reference_under_the_interpreter() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "LFI_", "PYTEST"))}
    env = kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "--noconftest"]
    command += ["-q", "-p", "no:cacheprovider", "-W", "error"]
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
    assert "skipped" not in done.stdout

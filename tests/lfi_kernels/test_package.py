"""The package as a whole: what importing it costs, and what it offers."""

from __future__ import annotations

import os
import subprocess
import sys

import lfi_kernels

PROBE = """
import sys
import torch
before = set(sys.modules)
import lfi_kernels
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - {"lfi_kernels", "torch"} - set(sys.stdlib_module_names)), "triton" in sys.modules)
"""


def test_importing_it_loads_torch_and_nothing_else() -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[] False"


def test_every_public_name_is_there() -> None:
    assert all(hasattr(lfi_kernels, name) for name in lfi_kernels.__all__)

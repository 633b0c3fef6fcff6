"""These tests run the fused kernels: on a GPU, or under Triton's interpreter, which `../test_fused.py` starts."""

from __future__ import annotations

import os

import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]

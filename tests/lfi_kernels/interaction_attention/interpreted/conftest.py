"""These tests run the fused kernels: on a GPU, or under Triton's interpreter, which `../test_dispatch_op.py` starts.

On a GPU each compiles its kernels, which takes minutes in all: `-m gpu_minute` chooses a part (kernels/README.md).
"""

from __future__ import annotations

import os

import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]

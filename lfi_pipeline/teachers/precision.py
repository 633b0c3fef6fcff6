"""What a teacher's trunk and text tower compute in: the one place in which `auto` is resolved."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast

import torch

from lfi_pipeline.errors import UnknownNameError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Return what `auto` (bf16 on CUDA, fp32 elsewhere) or a name of `DTYPES` stands for.

    Raises:
        UnknownNameError: neither.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if name not in DTYPES:
        raise UnknownNameError("precision", name, ("auto", *DTYPES))
    return cast(Precision, name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Compute in `precision` inside; nothing is changed for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])

"""Which triton is installed; it is not loaded for the answer."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

OLDEST_TRITON = (3, 5)
"""The first whose loops can be told to hold nothing in registers that is cheap to compute again. torch 2.9 has it."""


@functools.cache
def triton_version() -> str | None:
    """Such as `3.6.0`; `unknown` where a package without a record holds it; None without triton."""
    for name in ("triton", "pytorch-triton"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown" if find_spec("triton") else None


def has_triton() -> bool:
    """Whether the fused kernels can be compiled: there is a triton, and it is not known to be too old."""
    found = triton_version()
    if found is None:
        return False
    numbers = found.split(".")[:2]
    return not all(each.isdecimal() for each in numbers) or tuple(map(int, numbers)) >= OLDEST_TRITON

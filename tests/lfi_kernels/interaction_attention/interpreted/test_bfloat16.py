"""bf16 as the kernels compute it. Triton's interpreter multiplies the bits of such numbers; here it multiplies them.

On a GPU the other tests have bf16 among their dtypes; these add nothing there, and cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.lfi_kernels.interaction_attention.interpreted.test_against_reference import DEVICE, check, make


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFI_KERNELS", "triton")
    if DEVICE == "cuda":
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    of_bits = InterpreterBuilder.create_dot

    def numbers(operand: Any) -> Any:
        return (operand.data.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return of_bits(self, a, b, d, *options)
        return TensorHandle(np.matmul(numbers(a), numbers(b)) + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.parametrize(
    ("heads", "words", "patches", "dim", "kind", "eps"),
    [
        (3, 3, 49, 192, "u8", None),
        (4, 16, 196, 192, "u8", 1e-5),
        (2, 17, 257, 32, "f16", 1e-5),
        (2, 3, 700, 48, "u8", 1e-5),
        (5, 60, 40, 32, "none", 1e-5),
    ],
)
def test_outputs_and_gradients(heads: int, words: int, patches: int, dim: int, kind: str, eps: float | None) -> None:
    check(make(heads, words, patches, dim, dtype=torch.bfloat16, kind=kind, masked=True, eps=eps), torch.bfloat16)

"""bf16 as the kernels compute it. Triton's interpreter multiplies the bits of such numbers, and cuts digits off where a
GPU rounds; here it multiplies the numbers, and rounds.

On a GPU the other tests have bf16 among their dtypes; these add nothing there, and cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.lfi_kernels.interaction_attention.interpreted.test_triton_fused import DEVICE, FEW, check, make


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cuda":
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    of_bits, cut = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def numbers(operand: Any) -> Any:
        return (operand.data.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return of_bits(self, a, b, d, *options)
        return TensorHandle(np.matmul(numbers(a), numbers(b)) + d.data, d.dtype.scalar)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cut(self, src, dst_type)
        rounded = torch.from_numpy(np.array(src.data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return TensorHandle(rounded, dst_type.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)


@pytest.mark.parametrize(
    ("words", "patches", "dim", "told"),
    [
        (16, 70, 64, {"masked": True}),
        (5, 20, 48, {"rows": FEW, "kind": "f16"}),
        (70, 20, 32, {"batch": 1, "heads": 2, "query_dim": 32}),
        (3, 130, 192, {"eps": None, "kind": "none"}),
    ],
)
def test_outputs_and_gradients(words: int, patches: int, dim: int, told: dict[str, Any]) -> None:
    check(make(words, patches, dim, dtype=torch.bfloat16, **told))

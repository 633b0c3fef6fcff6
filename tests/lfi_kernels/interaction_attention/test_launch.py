"""What the launchers tell a kernel about tensors; none of it needs triton."""

from __future__ import annotations

import torch

from lfi_kernels.interaction_attention.triton_launch import alignment, precision, strides, within_reach


def test_offsets_that_do_not_fit_in_32_bits_are_avoided() -> None:
    near = torch.empty(4, 3, 2**29, dtype=torch.uint8, device="meta")  # 2^30 + 2^29 within a sample, more in all
    assert within_reach(near) is near
    far = torch.empty(1, dtype=torch.uint8, device="meta").as_strided((2, 3, 5), (1, 2**30, 2))
    copied = within_reach(far)
    assert copied is not far
    assert copied.stride() == (15, 5, 1)


def test_alignment_is_of_rows_and_of_the_address() -> None:
    assert alignment(None) == 1
    assert alignment(torch.zeros(2, 3, 196, dtype=torch.uint8)) == 4
    assert alignment(torch.zeros(2, 3, 197, dtype=torch.uint8)) == 1
    assert alignment(torch.zeros(2, 3, 1024, dtype=torch.float16)) == 16
    assert alignment(torch.zeros(2, 3, 1024, dtype=torch.float16)[..., :1022]) == 2  # rows that end at no multiple
    shifted = torch.zeros(2 * 3 * 64 + 2, dtype=torch.uint8)[2:].view(2, 3, 64)
    assert alignment(shifted) == 2


def test_the_rest() -> None:
    assert strides(None, 3) == (0, 0, 0)
    assert strides(torch.zeros(2, 5), 2) == (5, 1)
    assert precision(torch.zeros(1)) == "tf32x3"
    assert precision(torch.zeros(1, dtype=torch.bfloat16)) == "ieee"

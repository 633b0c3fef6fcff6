"""What the parts j of a sample's patches give for a row, combined in a fixed order:

    lse = log sum_j exp(lse_j)    z = sum_j exp(lse_j - lse) z_j
    kl = w (sum T log T + sum_j (kl_j + (sum T_j) (lse - lse_j)))

Letters of the suffixes: B sample, J part, R = H*M row, D channel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lfi_kernels.interaction_attention.triton_launch import strides

Rows = tuple[Tensor, Tensor, Tensor, Tensor]


@triton.jit
def combine_kernel(
    p_z_part,  # [B, J, R, D] contiguous fp32
    p_kl_part,  # [B, J, R] contiguous fp32, without sum T log T and the weight
    p_lse_part,  # [B, J, R] contiguous fp32, -inf where empty
    p_sum_part,  # [B, J, R] contiguous fp32
    p_weight,  # [B, M] floating, or None
    p_h,  # [B, M] contiguous fp32: sum T log T, or None without a target
    p_z,  # [B, R, D] contiguous, u's dtype
    p_kl,  # [B, R] contiguous fp32
    p_lse,  # [B, R] contiguous fp32, +inf where empty
    p_sum,  # [B, R] contiguous fp32
    s_w_b,
    s_w_m,
    M,
    D,
    R,
    J,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    i_b = i_row // R
    i_r = i_row % R
    o_j = tl.arange(0, BLOCK_J)
    m_j = o_j < J
    o_part = (i_b * J + o_j) * R + i_r  # [BLOCK_J]
    b_lse_j = tl.load(p_lse_part + o_part, mask=m_j, other=float("-inf"))
    b_kl_j = tl.load(p_kl_part + o_part, mask=m_j, other=0.0)
    b_sum_j = tl.load(p_sum_part + o_part, mask=m_j, other=0.0)

    b_max = tl.max(b_lse_j, 0)
    is_empty = b_max == float("-inf")
    b_max = tl.where(is_empty, 0.0, b_max)
    b_l = tl.sum(tl.exp(b_lse_j - b_max), 0)
    b_lse = b_max + tl.log(tl.where(is_empty, 1.0, b_l))
    b_share = tl.exp(b_lse_j - b_lse)  # [BLOCK_J]

    # A part without patches has a log-sum-exp of -inf and a target that sums to 0.
    b_gap_j = tl.where(b_lse_j == float("-inf"), 0.0, b_lse - b_lse_j)
    b_kl = tl.sum(b_kl_j + b_sum_j * b_gap_j, 0)
    if p_h is not None:
        b_kl += tl.load(p_h + i_b * M + i_r % M)
    if p_weight is not None:
        b_w = tl.load(p_weight + i_b * s_w_b + (i_r % M) * s_w_m).to(tl.float32)
        b_kl = b_kl * b_w
    tl.store(p_kl + i_row, b_kl)
    tl.store(p_sum + i_row, tl.sum(b_sum_j, 0))
    tl.store(p_lse + i_row, tl.where(is_empty, float("inf"), b_lse))

    for i_d in tl.range(0, D, BLOCK_D, disable_licm=True):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_d = o_d < D
        b_z_j = tl.load(p_z_part + o_part[:, None] * D + o_d[None, :], mask=m_j[:, None] & m_d[None, :], other=0.0)
        b_z = tl.sum(b_share[:, None] * b_z_j, 0)
        tl.store(p_z + i_row * D + o_d, b_z.to(p_z.dtype.element_ty), mask=m_d)


def combine(parts: Rows, row_weight: Tensor | None, entropy: Tensor | None, out: Rows) -> None:
    """From z [B, J, R, D], kl, lse and sum T [B, J, R] of each part to those [B, H, M, D] and [B, H, M] of the rows."""
    batch, heads, words, dim = out[0].shape
    rows, count = heads * words, parts[0].shape[1]
    combine_kernel[(batch * rows,)](
        *(*parts, row_weight, entropy, *out, *strides(row_weight, 2), words, dim, rows, count),
        BLOCK_J=triton.next_power_of_2(count),
        BLOCK_D=min(triton.next_power_of_2(dim), 256),
        num_warps=4,
    )

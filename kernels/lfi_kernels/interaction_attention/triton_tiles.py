"""Pieces that the forward and the backward kernel share: what a tile reads, and the scores.

Prefixes: p_ pointer, b_ block in registers, o_ offset, m_ mask, i_ index, s_ stride in elements.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def patch_mask(p_pad, i_b, o_n, s_pad_b, s_pad_n, N):
    """Which patches of the tile count, [BLOCK_N]: those that exist and are not ignored."""
    m_n = o_n < N
    if p_pad is not None:
        b_pad = tl.load(p_pad + i_b * s_pad_b + o_n * s_pad_n, mask=m_n, other=1)
        m_n = m_n & (b_pad == 0)
    return m_n


@triton.jit
def row_weights(p_weight, i_b, o_m, m_r, s_weight_b, s_weight_m):
    """Weight of each row, [BLOCK_R] in fp32; 0 for rows that do not exist."""
    if p_weight is None:
        b_w = tl.where(m_r, 1.0, 0.0)
    else:
        b_w = tl.load(p_weight + i_b * s_weight_b + o_m * s_weight_m, mask=m_r, other=0.0).to(tl.float32)
    return b_w


@triton.jit
def target_tile(
    p_target,
    p_weight,
    p_scale,
    i_b,
    o_r,
    o_n,
    b_w,
    m_n,
    s_t_b,
    s_t_m,
    s_t_n,
    s_w_b,
    s_w_m,
    s_scale_b,
    s_scale_m,
    M,
    SQRT: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Maps of the tile, [BLOCK_R, BLOCK_N] in fp32; rows of weight 0 and patches outside `m_n` are never read.

    Targets of 8 or 16 bits are read once a word and spread over the heads by a product with a matrix of ones and zeros.
    It is exact, for each sum has one term, and its result lies in registers as the scores do; a plain load would
    have to be rearranged through shared memory, and spilled 1.4 kB a thread in the compiler's report.
    """
    o_m = o_r % M
    m_w = b_w != 0.0
    p_sample = p_target + i_b * tl.multiple_of(s_t_b, ALIGN)
    s_row = tl.multiple_of(s_t_m, ALIGN)
    if p_target.dtype.element_ty.primitive_bitwidth > 16:
        p_t = p_sample + o_m[:, None] * s_row + o_n[None, :] * s_t_n
        b_t = tl.load(p_t, mask=m_w[:, None] & m_n[None, :], other=0.0).to(tl.float32)
    else:
        o_word = tl.arange(0, BLOCK_M)
        m_word = row_weights(p_weight, i_b, o_word, o_word < M, s_w_b, s_w_m) != 0.0
        p_t = p_sample + o_word[:, None] * s_row + o_n[None, :] * s_t_n
        b_codes = tl.load(p_t, mask=m_word[:, None] & m_n[None, :], other=0)  # [BLOCK_M, BLOCK_N]
        if p_scale is not None:
            b_codes = b_codes.to(tl.float16)  # holds 0 to 255
        b_spread = ((o_m[:, None] == o_word[None, :]) & m_w[:, None]).to(b_codes.dtype)  # [BLOCK_R, BLOCK_M]
        b_t = tl.dot(b_spread, b_codes, input_precision="ieee")
    if p_scale is not None:
        b_scale = tl.load(p_scale + i_b * s_scale_b + o_m * s_scale_m, mask=m_w, other=0.0).to(tl.float32)
        if SQRT:
            b_t = b_t * b_t * (b_scale / 65025.0)[:, None]
        else:
            b_t = b_t * (b_scale / 255.0)[:, None]
    return b_t

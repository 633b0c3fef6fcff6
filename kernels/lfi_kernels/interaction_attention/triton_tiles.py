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
    p_target, p_scale, i_b, o_m, o_n, m_w, m_n, s_t_b, s_t_m, s_t_n, s_scale_b, s_scale_m, SQRT: tl.constexpr
):
    """Maps of the tile, [BLOCK_R, BLOCK_N] in fp32; rows outside `m_w` and patches outside `m_n` are never read."""
    p_t = p_target + i_b * s_t_b + o_m[:, None] * s_t_m + o_n[None, :] * s_t_n
    b_t = tl.load(p_t, mask=m_w[:, None] & m_n[None, :], other=0).to(tl.float32)
    if p_scale is not None:
        b_t = b_t / 255.0
        if SQRT:
            b_t = b_t * b_t
        b_scale = tl.load(p_scale + i_b * s_scale_b + o_m * s_scale_m, mask=m_w, other=0.0).to(tl.float32)
        b_t = b_t * b_scale[:, None]
    return b_t

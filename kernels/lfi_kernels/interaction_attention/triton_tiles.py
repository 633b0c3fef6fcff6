"""Pieces that the forward and the backward kernel share: what a tile reads, and the scores.

Prefixes: p_ pointer, b_ block in registers, o_ offset, m_ mask, i_ index, s_ stride in elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_M = tl.constexpr(16)
"""Words whose target is spread at a time; a product takes no fewer."""


LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(b_x):
    """e^x by the one instruction that the hardware has; tl.exp takes ten to serve results below 2^-126 as well."""
    return tl.exp2(b_x * LOG2_E)


@triton.jit
def attention(b_s, b_lse, m_n):
    """P of a tile: e^(S - lse) where patches count, else 0."""
    return tl.where(m_n[None, :], tl.exp2(b_s * LOG2_E - (b_lse * LOG2_E)[:, None]), 0.0)


@triton.jit
def channel_mask(o_k, D, EVEN: tl.constexpr):
    """Which of the channels exist; EVEN: the blocks divide D, so that all do."""
    m_k = o_k < D
    if EVEN:
        m_k = tl.full(o_k.shape, True, tl.int1)
    return m_k


@triton.jit
def eighths(b_x):
    """Sums of 8 neighbours, [ROWS, COLUMNS] -> [ROWS, COLUMNS / 8]: those that one thread holds, so that what runs over
    many tiles is added up across threads but once."""
    return tl.sum(tl.reshape(b_x, [b_x.shape[0], b_x.shape[1] // 8, 8]), 2)


@triton.jit
def aligned(n, ALIGN: tl.constexpr):
    """A multiple of ALIGN, written so that the compiler sees it: a hint does not reach a kernel's own argument."""
    return n // ALIGN * ALIGN


@triton.jit
def patch_mask(p_pad, i_b, o_n, s_pad_b, s_pad_n, N, ALIGN: tl.constexpr):
    """Which patches of the tile count, [BLOCK_N]: those that exist and are not ignored."""
    m_n = o_n < aligned(N, ALIGN)
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
def curve(b_q, SQRT: tl.constexpr):
    """What codes 0 to 255, in fp32, stand for, in units of the scale over `top`."""
    if SQRT:
        b_q = b_q * b_q
    return b_q


@triton.jit
def top(SQRT: tl.constexpr):
    """The curve's value for code 255."""
    return 255.0 * 255.0 if SQRT else 255.0


@triton.jit
def target_tile(
    p_target,
    p_weight,
    p_scale,
    i_b,
    o_m,
    o_n,
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
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Maps T of the tile in fp32, as T = unit * shape.

    Words of weight 0 and patches outside `m_n` are never read. A word is read once, and spread over its heads by a
    product with a matrix of ones and zeros. It is exact, for each sum has one term (an fp32 target keeps 22 bits), and
    its result lies in registers as the scores do: a plain load would have to be rearranged through shared memory.

    Returns:
        shape [BLOCK_R, BLOCK_N] and unit [BLOCK_R]: for codes q^2 or q, and scale/255^2 or scale/255; else T and 1.
    """
    p_sample = p_target + i_b * aligned(s_t_b, ALIGN)
    s_row = aligned(s_t_m, ALIGN)
    b_t = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
    for i_m in tl.range(0, M, BLOCK_M, num_stages=1, disable_licm=True):
        o_word = i_m + tl.arange(0, BLOCK_M)
        m_word = row_weights(p_weight, i_b, o_word, o_word < M, s_w_b, s_w_m) != 0.0
        p_t = p_sample + (o_word[:, None] * s_row + o_n[None, :] * s_t_n)
        b_codes = tl.load(p_t, mask=m_word[:, None] & m_n[None, :], other=0)  # [BLOCK_M, BLOCK_N]
        m_spread = o_m[:, None] == o_word[None, :]  # [BLOCK_R, BLOCK_M]
        if p_scale is not None:
            b_codes = b_codes.to(tl.float16)  # holds 0 to 255
        b_t = tl.dot(m_spread.to(b_codes.dtype), b_codes, b_t, input_precision="tf32x3")
    b_unit = tl.full([BLOCK_R], 1.0, dtype=tl.float32)
    if p_scale is not None:
        m_row = row_weights(p_weight, i_b, o_m, o_m < M, s_w_b, s_w_m) != 0.0
        b_unit = tl.load(p_scale + i_b * s_scale_b + o_m * s_scale_m, mask=m_row, other=0.0).to(tl.float32)
        b_unit = b_unit / top(SQRT)
        b_t = curve(b_t, SQRT)
    return b_t, b_unit

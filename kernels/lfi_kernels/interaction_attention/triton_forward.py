"""The fused forward pass: X is read from memory once, K, V and the maps are never written.

A program holds one tile of scores, [BLOCK_R, BLOCK_N]: all heads and words of a sample against its patches (see
`blocks`). Where several tiles cover the patches, each gives its share of z and its own log-sum-exp, and a second
kernel combines them, for tiles j of a row:

    lse = log sum_j exp(lse_j)    z = sum_j exp(lse_j - lse) z_j    kl = w sum_j (kl_j + (sum T_j) (lse - lse_j))

which is the KL of DESIGN.md, section 6, with every term taken against a log-sum-exp near it, so that large scores cost
no digits.

Letters of the suffixes: B sample, J tile of patches, R = H*M row, N patch, D channel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lfi_kernels.interaction_attention.blocks import forward_blocks, tiles
from lfi_kernels.interaction_attention.triton_launch import (
    alignment,
    device_of,
    pointer,
    precision,
    strides,
    within_reach,
)
from lfi_kernels.interaction_attention.triton_tiles import patch_mask, row_weights, target_tile

IGNORED = tl.constexpr(-1e38)
"""Score of a patch that does not count; no score reaches it."""


@triton.jit
def forward_kernel(
    p_u,  # [B, H, M, D] fp16, bf16 or fp32: folded queries
    p_x,  # [B, N, D] of u's dtype: patches
    p_target,  # [B, M, N] uint8 or floating, or None
    p_weight,  # [B, M] floating, or None
    p_scale,  # [B, M] floating where the target is uint8, else None
    p_pad,  # [B, N] uint8, not 0 = ignore, or None
    p_z,  # [B, J, R, D] contiguous: fp32 where J > 1, else u's dtype
    p_kl,  # [B, J, R] contiguous fp32; without the weight where J > 1
    p_lse,  # [B, J, R] contiguous fp32; of an empty row -inf where J > 1, else +inf
    p_sum,  # [B, J, R] contiguous fp32: sum of the target
    s_u_b,
    s_u_h,
    s_u_m,
    s_u_d,
    s_x_b,
    s_x_n,
    s_x_d,
    s_t_b,
    s_t_m,
    s_t_n,
    s_w_b,
    s_w_m,
    s_scale_b,
    s_scale_m,
    s_pad_b,
    s_pad_n,
    M,
    N,
    D,
    R,
    ROW_TILES,
    J,
    SQRT: tl.constexpr,
    ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Tiles of one sample run side by side, so that its patches are read from memory once.
    # A sample's own offset takes 64 bits; offsets within a sample take 32, see `within_reach`.
    i_program = tl.program_id(0)
    i_r = i_program % ROW_TILES
    i_j = (i_program // ROW_TILES) % J
    i_b = (i_program // (ROW_TILES * J)).to(tl.int64)

    o_r = i_r * BLOCK_R + tl.arange(0, BLOCK_R)
    o_n = i_j * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    o_m = o_r % M
    m_r = o_r < R
    m_n = patch_mask(p_pad, i_b, o_n, s_pad_b, s_pad_n, N)
    p_u_rows = p_u + i_b * s_u_b + (o_r // M) * s_u_h + o_m * s_u_m  # [BLOCK_R]
    p_x_rows = p_x + i_b * s_x_b + o_n * s_x_n  # [BLOCK_N]

    b_s = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
    for i_d in range(0, D, BLOCK_D):
        o_k = i_d + o_d
        m_k = o_k < D
        b_u = tl.load(p_u_rows[:, None] + o_k[None, :] * s_u_d, mask=m_r[:, None] & m_k[None, :], other=0.0)
        b_x = tl.load(p_x_rows[:, None] + o_k[None, :] * s_x_d, mask=m_n[:, None] & m_k[None, :], other=0.0)
        b_s = tl.dot(b_u, tl.trans(b_x), b_s, input_precision=PRECISION)

    # A patch that does not count scores a finite number, so that times a target of 0 it is 0, not NaN. In a tile
    # without patches the softmax is uniform, over rows of X that were read as 0.
    b_s = tl.where(m_n[None, :], b_s, IGNORED)
    b_max = tl.max(b_s, 1)
    m_empty = b_max == IGNORED
    b_s = b_s - b_max[:, None]
    b_log_l = tl.log(tl.sum(tl.exp(b_s), 1))

    o_out = (i_b * J + i_j) * R + o_r  # [BLOCK_R]
    b_lse = tl.where(m_empty, float("-inf") if SPLIT else float("inf"), b_max + b_log_l)
    tl.store(p_lse + o_out, b_lse, mask=m_r)
    b_kl = tl.zeros([BLOCK_R], dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_R], dtype=tl.float32)
    if p_target is not None:
        b_t, b_unit, b_h, b_sum = target_tile(
            *(p_target, p_weight, p_scale, i_b, o_m, o_n, m_n, s_t_b, s_t_m, s_t_n),
            *(s_w_b, s_w_m, s_scale_b, s_scale_m, M, SQRT, ALIGN, True, BLOCK_R, BLOCK_N),
        )
        b_kl = b_h + b_sum * b_log_l - b_unit * tl.sum(b_t * b_s, 1)
        if not SPLIT:
            b_kl = b_kl * row_weights(p_weight, i_b, o_m, m_r, s_w_b, s_w_m)
    tl.store(p_kl + o_out, b_kl, mask=m_r)
    tl.store(p_sum + o_out, b_sum, mask=m_r)

    b_p = tl.exp(b_s - b_log_l[:, None])  # after the target, so that the two are not held at once
    b_p = b_p.to(p_x.dtype.element_ty)
    p_z_rows = p_z + (i_b * J + i_j) * R * D + o_r * D
    for i_d in range(0, D, BLOCK_D):
        o_k = i_d + o_d
        m_k = o_k < D
        b_x = tl.load(p_x_rows[:, None] + o_k[None, :] * s_x_d, mask=m_n[:, None] & m_k[None, :], other=0.0)
        b_z = tl.dot(b_p, b_x, input_precision=PRECISION)
        tl.store(p_z_rows[:, None] + o_k[None, :], b_z.to(p_z.dtype.element_ty), mask=m_r[:, None] & m_k[None, :])


@triton.jit
def combine_kernel(
    p_z_part,  # [B, J, R, D] contiguous fp32
    p_kl_part,  # [B, J, R] contiguous fp32, without the weight
    p_lse_part,  # [B, J, R] contiguous fp32, -inf where empty
    p_sum_part,  # [B, J, R] contiguous fp32
    p_weight,  # [B, M] floating, or None
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

    # A tile without patches has a log-sum-exp of -inf and a target that sums to 0.
    b_gap_j = tl.where(b_lse_j == float("-inf"), 0.0, b_lse - b_lse_j)
    b_kl = tl.sum(b_kl_j + b_sum_j * b_gap_j, 0)
    if p_weight is not None:
        b_w = tl.load(p_weight + i_b * s_w_b + (i_r % M) * s_w_m).to(tl.float32)
        b_kl = b_kl * b_w
    tl.store(p_kl + i_row, b_kl)
    tl.store(p_sum + i_row, tl.sum(b_sum_j, 0))
    tl.store(p_lse + i_row, tl.where(is_empty, float("inf"), b_lse))

    for i_d in range(0, D, BLOCK_D):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_d = o_d < D
        b_z_j = tl.load(p_z_part + o_part[:, None] * D + o_d[None, :], mask=m_j[:, None] & m_d[None, :], other=0.0)
        b_z = tl.sum(b_share[:, None] * b_z_j, 0)
        tl.store(p_z + i_row * D + o_d, b_z.to(p_z.dtype.element_ty), mask=m_d)


def launch_forward(
    u: Tensor,
    x: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    companding: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the forward kernel on checked arguments.

    Returns:
        z [B, H, M, D] in u's dtype; kl, lse (+inf where every patch is ignored) and the sum of the target, each
        [B, H, M] in fp32.
    """
    u, x = within_reach(u), within_reach(x)
    target = None if target is None else within_reach(target)
    batch, heads, words, dim = u.shape
    rows, patches = heads * words, x.shape[1]
    blocks = forward_blocks(rows, patches, dim, u.element_size())
    row_tiles, parts = tiles(rows, blocks.rows), tiles(patches, blocks.patches)

    shape = (batch, heads, words)
    z = torch.empty((*shape, dim), dtype=u.dtype, device=u.device)
    kl, lse, target_sum = (torch.empty(shape, dtype=torch.float32, device=u.device) for _ in range(3))
    if z.numel() == 0:
        return z, kl, lse, target_sum
    out = (z, kl, lse, target_sum)
    if parts > 1:
        z_part = torch.empty((batch, parts, rows, dim), dtype=torch.float32, device=u.device)
        rest = [torch.empty((batch, parts, rows), dtype=torch.float32, device=u.device) for _ in range(3)]
        out = (z_part, rest[0], rest[1], rest[2])

    with device_of(u):
        forward_kernel[(batch * parts * row_tiles,)](
            *(u, x, target, row_weight, target_scale, pointer(key_padding_mask), *out),
            *(*u.stride(), *x.stride(), *strides(target, 3), *strides(row_weight, 2)),
            *(*strides(target_scale, 2), *strides(key_padding_mask, 2)),
            *(words, patches, dim, rows, row_tiles, parts),
            SQRT=companding == "sqrt",
            ALIGN=alignment(target),
            SPLIT=parts > 1,
            PRECISION=precision(u),
            BLOCK_R=blocks.rows,
            BLOCK_N=blocks.patches,
            BLOCK_D=blocks.channels,
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )
        if parts > 1:
            combine_kernel[(batch * rows,)](
                *(*out, row_weight, z, kl, lse, target_sum, *strides(row_weight, 2), words, dim, rows, parts),
                BLOCK_J=triton.next_power_of_2(parts),
                BLOCK_D=min(triton.next_power_of_2(dim), 256),
                num_warps=4,
            )
    return z, kl, lse, target_sum

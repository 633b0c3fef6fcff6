"""The fused backward pass: one kernel reads X once from memory, builds P again, and writes dX and dU.

With g the gradient of kl, w the weight of the row, and DESIGN.md, section 6:

    dP = dZ X^T    dS = P*(dP - delta) - g w T    delta = rowsum(P*dP) - g w sum T
    dX = dS^T U + P^T dZ    dU = dS X

A program holds all rows of a sample against one tile of patches, so dX is complete in it. Where several tiles cover
the patches, rowsum(P*dP) is taken as sum_d z dz, and each tile gives its share of dU, which are then added in a fixed
order: no atomics, the same bits every time. Where the rows exceed one tile, the kernel runs once for each tile of
rows and adds to dX, which is then held in fp32.

Letters of the suffixes: B sample, J tile of patches, R = H*M row, N patch, D channel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lfi_kernels.interaction_attention.blocks import backward_blocks, tiles
from lfi_kernels.interaction_attention.triton_launch import (
    alignment,
    device_of,
    pointer,
    precision,
    strides,
    within_reach,
)
from lfi_kernels.interaction_attention.triton_tiles import patch_mask, row_weights, target_tile


@triton.jit
def backward_kernel(
    p_u,  # [B, H, M, D] fp16, bf16 or fp32: folded queries
    p_x,  # [B, N, D] of u's dtype: patches
    p_target,  # [B, M, N] uint8 or floating, or None
    p_weight,  # [B, M] floating, or None
    p_scale,  # [B, M] floating where the target is uint8, else None
    p_pad,  # [B, N] uint8, not 0 = ignore, or None
    p_z,  # [B, R, D] contiguous, u's dtype: z of the forward pass
    p_lse,  # [B, R] contiguous fp32, +inf where every patch is ignored
    p_sum,  # [B, R] contiguous fp32: sum of the target
    p_dz,  # [B, H, M, D] of u's dtype: gradient of z
    p_dkl,  # [B, H, M] fp32: gradient of kl
    p_du,  # [B, J, R, D] contiguous: fp32 where J > 1, else u's dtype
    p_dx,  # [B, N, D] contiguous: fp32 where the rows are several tiles, else x's dtype
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
    s_dz_b,
    s_dz_h,
    s_dz_m,
    s_dz_d,
    s_dkl_b,
    s_dkl_h,
    s_dkl_m,
    M,
    N,
    D,
    R,
    FIRST_ROW,
    J,
    SQRT: tl.constexpr,
    ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A sample's own offset takes 64 bits; offsets within a sample take 32, see `within_reach`.
    i_program = tl.program_id(0)
    i_j = i_program % J
    i_b = (i_program // J).to(tl.int64)

    o_r = FIRST_ROW + tl.arange(0, BLOCK_R)
    o_n = i_j * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    o_h = o_r // M
    o_m = o_r % M
    m_r = o_r < R
    m_n = patch_mask(p_pad, i_b, o_n, s_pad_b, s_pad_n, N)
    p_u_rows = p_u + i_b * s_u_b + o_h * s_u_h + o_m * s_u_m  # [BLOCK_R]
    p_dz_rows = p_dz + i_b * s_dz_b + o_h * s_dz_h + o_m * s_dz_m  # [BLOCK_R]
    p_x_rows = p_x + i_b * s_x_b + o_n * s_x_n  # [BLOCK_N]
    p_z_rows = p_z + i_b * R * D + o_r * D  # [BLOCK_R]

    b_s = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
    b_dp = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
    b_delta = tl.zeros([BLOCK_R], dtype=tl.float32)
    for i_d in range(0, D, BLOCK_D):
        o_k = i_d + o_d
        m_k = o_k < D
        b_u = tl.load(p_u_rows[:, None] + o_k[None, :] * s_u_d, mask=m_r[:, None] & m_k[None, :], other=0.0)
        b_dz = tl.load(p_dz_rows[:, None] + o_k[None, :] * s_dz_d, mask=m_r[:, None] & m_k[None, :], other=0.0)
        b_x = tl.load(p_x_rows[:, None] + o_k[None, :] * s_x_d, mask=m_n[:, None] & m_k[None, :], other=0.0)
        b_s = tl.dot(b_u, tl.trans(b_x), b_s, input_precision=PRECISION)
        b_dp = tl.dot(b_dz, tl.trans(b_x), b_dp, input_precision=PRECISION)
        if SPLIT:
            b_z = tl.load(p_z_rows[:, None] + o_k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0)
            b_delta += tl.sum(b_z.to(tl.float32) * b_dz.to(tl.float32), 1)

    b_lse = tl.load(p_lse + i_b * R + o_r, mask=m_r, other=float("inf"))
    b_p = tl.where(m_n[None, :], tl.exp(b_s - b_lse[:, None]), 0.0)
    if not SPLIT:
        b_delta = tl.sum(b_p * b_dp, 1)
    if p_target is not None:
        b_w = row_weights(p_weight, i_b, o_m, m_r, s_w_b, s_w_m)
        b_dkl = tl.load(p_dkl + i_b * s_dkl_b + o_h * s_dkl_h + o_m * s_dkl_m, mask=b_w != 0.0, other=0.0)
        b_gw = b_dkl * b_w
        b_delta -= b_gw * tl.load(p_sum + i_b * R + o_r, mask=m_r, other=0.0)
    b_ds = b_p * (b_dp - b_delta[:, None])
    b_p_t = tl.trans(b_p.to(p_x.dtype.element_ty))
    if p_target is not None:
        b_t, b_unit, _, _ = target_tile(
            *(p_target, p_weight, p_scale, i_b, o_m, o_n, m_n, s_t_b, s_t_m, s_t_n),
            *(s_w_b, s_w_m, s_scale_b, s_scale_m, M, SQRT, ALIGN, False, BLOCK_R, BLOCK_N),
        )
        b_ds -= (b_gw * b_unit)[:, None] * b_t
    b_ds = b_ds.to(p_x.dtype.element_ty)
    b_ds_t = tl.trans(b_ds)

    p_du_rows = p_du + (i_b * J + i_j) * R * D + o_r * D  # [BLOCK_R]
    p_dx_rows = p_dx + i_b * N * D + o_n * D  # [BLOCK_N]
    m_store = o_n < N  # ignored patches get their zeros
    for i_d in range(0, D, BLOCK_D):
        o_k = i_d + o_d
        m_k = o_k < D
        b_u = tl.load(p_u_rows[:, None] + o_k[None, :] * s_u_d, mask=m_r[:, None] & m_k[None, :], other=0.0)
        b_dz = tl.load(p_dz_rows[:, None] + o_k[None, :] * s_dz_d, mask=m_r[:, None] & m_k[None, :], other=0.0)
        b_x = tl.load(p_x_rows[:, None] + o_k[None, :] * s_x_d, mask=m_n[:, None] & m_k[None, :], other=0.0)
        b_du = tl.dot(b_ds, b_x, input_precision=PRECISION)
        tl.store(p_du_rows[:, None] + o_k[None, :], b_du.to(p_du.dtype.element_ty), mask=m_r[:, None] & m_k[None, :])
        b_dx = tl.dot(b_ds_t, b_u, input_precision=PRECISION)
        b_dx = tl.dot(b_p_t, b_dz, b_dx, input_precision=PRECISION)
        p_dx_tile = p_dx_rows[:, None] + o_k[None, :]
        if ADD:
            b_dx += tl.load(p_dx_tile, mask=m_store[:, None] & m_k[None, :], other=0.0)
        tl.store(p_dx_tile, b_dx.to(p_dx.dtype.element_ty), mask=m_store[:, None] & m_k[None, :])


def launch_backward(
    dz: Tensor,
    dkl: Tensor,
    z: Tensor,
    lse: Tensor,
    target_sum: Tensor,
    u: Tensor,
    x: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    companding: str,
) -> tuple[Tensor, Tensor]:
    """Run the backward kernel on what `launch_forward` was given and gave.

    Returns:
        du [B, H, M, D] and dx [B, N, D], contiguous, in the dtype of u and x.
    """
    u, x, dz = within_reach(u), within_reach(x), within_reach(dz)
    target = None if target is None else within_reach(target)
    batch, heads, words, dim = u.shape
    rows, patches = heads * words, x.shape[1]
    blocks = backward_blocks(rows, patches, dim, u.element_size())
    row_tiles, parts = tiles(rows, blocks.rows), tiles(patches, blocks.patches)
    if u.numel() == 0:
        return u.new_zeros(u.shape), x.new_zeros(x.shape)

    wide = torch.float32
    du = torch.empty((batch, parts, rows, dim), dtype=u.dtype if parts == 1 else wide, device=u.device)
    dx = torch.empty((batch, patches, dim), dtype=x.dtype if row_tiles == 1 else wide, device=x.device)
    with device_of(u):
        for row_tile in range(row_tiles):
            backward_kernel[(batch * parts,)](
                *(u, x, target, row_weight, target_scale, pointer(key_padding_mask)),
                *(z, lse, target_sum, dz, dkl, du, dx),
                *(*u.stride(), *x.stride(), *strides(target, 3), *strides(row_weight, 2)),
                *(*strides(target_scale, 2), *strides(key_padding_mask, 2), *dz.stride(), *dkl.stride()),
                *(words, patches, dim, rows, row_tile * blocks.rows, parts),
                SQRT=companding == "sqrt",
                ALIGN=alignment(target),
                SPLIT=parts > 1,
                ADD=row_tile > 0,
                PRECISION=precision(u),
                BLOCK_R=blocks.rows,
                BLOCK_N=blocks.patches,
                BLOCK_D=blocks.channels,
                num_warps=blocks.warps,
                num_stages=blocks.stages,
            )
    return (du if parts == 1 else du.sum(1)).to(u.dtype).view(u.shape), dx.to(x.dtype)

"""The fused backward pass: one kernel reads X, builds P again, and writes dX and dU.

With g the gradient of kl, w the weight of the row, and DESIGN.md, section 6:

    dP = dZ X^T    dS = P*(dP - delta) - g w T    delta = rowsum(P*dP) - g w sum T
    dX = dS^T U + P^T dZ    dU = dS X

A program takes one sample: in turn, the tiles of its rows against the tiles of its patches. Where one tile is not all,
dU and dX grow in fp32 in scratch memory, and rowsum(P*dP) is taken as sum_d z dz. Where too few samples fill the GPU,
their patches are cut into parts of several tiles, one program each, whose dU are added afterwards. Always in the same
order and without atomics: the same bits every time.

Layer norm's own gradient needs no pass either: X = rho (F - mu), and both means that it takes over the channels are
sums over rows, of numbers that the tile holds:

    dF = rho (dX - a - c X)
    a = mean_D(dX) = sum_R (dS sum_D(u) + P sum_D(dZ)) / D
    c = mean_D(dX*X) = sum_R (dS*S + P*dP) / D

Letters of the suffixes: B sample, J part, R = H*M row, N patch, D channel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lfi_kernels.interaction_attention.blocks import Blocks, split, tiles
from lfi_kernels.interaction_attention.triton_launch import (
    alignment,
    allocator,
    device_of,
    pointer,
    precision,
    problem_of,
    processors,
    strides,
    within_reach,
)
from lfi_kernels.interaction_attention.triton_tiles import (
    attention,
    channel_mask,
    eighths,
    patch_mask,
    row_weights,
    target_tile,
)
from lfi_kernels.interaction_attention.tuning import launch


@triton.jit
def column_sums(b_x, p_x, PRECISION: tl.constexpr):
    """Sums over the rows, [BLOCK_R, BLOCK_N] -> [BLOCK_N], as a product: rows lie in different threads, and adding
    them up by hand costs more than all else that is done with the tile."""
    b_ones = tl.full([b_x.shape[0], 16], 1.0, dtype=p_x.dtype.element_ty)
    b_sums = tl.dot(tl.trans(b_x.to(p_x.dtype.element_ty)), b_ones, input_precision=PRECISION)
    return tl.sum(b_sums, 1) / 16


@triton.jit
def first_column(b_x, p_x):
    """[BLOCK_R] -> [BLOCK_R, 16] with zeros beside it: a product takes no fewer columns."""
    return tl.where(tl.arange(0, 16)[None, :] == 0, b_x[:, None], 0.0).to(p_x.dtype.element_ty)


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
    p_mean,  # [B, N] contiguous fp32: mean of a patch, or None without layer norm
    p_rstd,  # [B, N] contiguous fp32: reciprocal of its deviation, or None
    p_dz,  # [B, H, M, D] of u's dtype: gradient of z
    p_dkl,  # [B, H, M] fp32: gradient of kl
    p_du,  # [B, J, R, D] contiguous: fp32 where J > 1, else u's dtype
    p_du_wide,  # [B, J, R, D] contiguous fp32: dU of the tiles so far, or None where one tile holds all patches
    p_dx,  # [B, N, D] contiguous, x's dtype
    p_dx_wide,  # [B, N, D] contiguous fp32: dX of the tiles so far, or None where one tile holds all rows
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
    J,
    TILES: tl.constexpr,
    ROW_TILES: tl.constexpr,
    EVEN: tl.constexpr,
    SQRT: tl.constexpr,
    ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A sample's own offset takes 64 bits; offsets within a sample take 32, see `within_reach`.
    i_program = tl.program_id(0)
    i_j = i_program % J
    i_b = (i_program // J).to(tl.int64)
    IS_WHOLE: tl.constexpr = TILES == 1 and not SPLIT

    o_d = tl.arange(0, BLOCK_D)
    for i_r in tl.range(ROW_TILES, disable_licm=True):
        o_r = i_r * BLOCK_R + tl.arange(0, BLOCK_R)
        o_h = o_r // M
        o_m = o_r % M
        m_r = o_r < R
        p_u_rows = p_u + i_b * s_u_b + o_h * s_u_h + o_m * s_u_m  # [BLOCK_R]
        p_dz_rows = p_dz + i_b * s_dz_b + o_h * s_dz_h + o_m * s_dz_m  # [BLOCK_R]
        p_z_rows = p_z + i_b * R * D + o_r * D  # [BLOCK_R]
        o_du = ((i_b * J + i_j) * R + o_r) * D  # [BLOCK_R]

        for i_tile in tl.range(TILES, disable_licm=True):
            o_n = (i_j * TILES + i_tile) * BLOCK_N + tl.arange(0, BLOCK_N)
            m_store = o_n < N  # ignored patches get their zeros
            m_n = patch_mask(p_pad, i_b, o_n, s_pad_b, s_pad_n, N, ALIGN)
            p_x_rows = p_x + i_b * s_x_b + o_n * s_x_n  # [BLOCK_N]

            b_s = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
            b_dp = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
            b_delta = tl.zeros([BLOCK_R], dtype=tl.float32)
            if p_mean is not None:
                b_sum_u = tl.zeros([BLOCK_R, BLOCK_D // 8], dtype=tl.float32)
                b_sum_dz = tl.zeros([BLOCK_R, BLOCK_D // 8], dtype=tl.float32)
            for i_d in range(0, D, BLOCK_D):
                o_k = i_d + o_d
                m_k = channel_mask(o_k, D, EVEN)
                m_rows = m_r[:, None] & m_k[None, :]
                b_u = tl.load(p_u_rows[:, None] + o_k[None, :] * s_u_d, mask=m_rows, other=0.0)
                b_dz = tl.load(p_dz_rows[:, None] + o_k[None, :] * s_dz_d, mask=m_rows, other=0.0)
                b_x = tl.load(p_x_rows[:, None] + o_k[None, :] * s_x_d, mask=m_n[:, None] & m_k[None, :], other=0.0)
                b_s = tl.dot(b_u, tl.trans(b_x), b_s, input_precision=PRECISION)
                b_dp = tl.dot(b_dz, tl.trans(b_x), b_dp, input_precision=PRECISION)
                if not IS_WHOLE:
                    b_z = tl.load(p_z_rows[:, None] + o_k[None, :], mask=m_rows, other=0.0)
                    b_delta += tl.sum(b_z.to(tl.float32) * b_dz.to(tl.float32), 1)
                if p_mean is not None:
                    b_sum_u += eighths(b_u.to(tl.float32))
                    b_sum_dz += eighths(b_dz.to(tl.float32))

            if p_mean is not None:
                b_row_u, b_row_dz = tl.sum(b_sum_u, 1), tl.sum(b_sum_dz, 1)
                b_mean = tl.load(p_mean + i_b * N + o_n, mask=m_n, other=0.0)
                b_rstd = tl.load(p_rstd + i_b * N + o_n, mask=m_n, other=0.0)
                b_s = b_s * b_rstd[None, :] - b_row_u[:, None] * (b_mean * b_rstd)[None, :]
                b_dp = b_dp * b_rstd[None, :] - b_row_dz[:, None] * (b_mean * b_rstd)[None, :]
            b_lse = tl.load(p_lse + i_b * R + o_r, mask=m_r, other=float("inf"))
            if IS_WHOLE:
                b_delta = tl.sum(attention(b_s, b_lse, m_n) * b_dp, 1)
            if p_target is not None:
                b_w = row_weights(p_weight, i_b, o_m, m_r, s_w_b, s_w_m)
                b_dkl = tl.load(p_dkl + i_b * s_dkl_b + o_h * s_dkl_h + o_m * s_dkl_m, mask=b_w != 0.0, other=0.0)
                b_gw = b_dkl * b_w
                b_delta -= b_gw * tl.load(p_sum + i_b * R + o_r, mask=m_r, other=0.0)
                b_t, b_unit = target_tile(
                    *(p_target, p_weight, p_scale, i_b, o_m, o_n, m_n, s_t_b, s_t_m, s_t_n),
                    *(s_w_b, s_w_m, s_scale_b, s_scale_m, M, SQRT, ALIGN, BLOCK_R, BLOCK_N),
                )
                b_t *= (b_gw * b_unit)[:, None]
            else:
                b_t = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
            # Only now, and from a new read that keeps the compiler from holding the first one's: P beside the target's
            # tile would not fit into the registers.
            b_lse = tl.load(p_lse + i_b * R + o_r, mask=m_r, other=float("inf"), volatile=True)
            b_p = attention(b_s, b_lse, m_n)
            b_ds = b_p * (b_dp - b_delta[:, None]) - b_t
            if p_mean is not None:
                b_mean = tl.load(p_mean + i_b * N + o_n, mask=m_n, other=0.0, volatile=True)
                b_rstd = tl.load(p_rstd + i_b * N + o_n, mask=m_n, other=0.0, volatile=True)
                # c from P*dP = dS + P*delta + g w T.
                b_c = column_sums((b_ds * (b_s + 1.0) + b_p * b_delta[:, None] + b_t) * (1.0 / D), p_x, PRECISION)
                # From here on dS and P carry rho, as a share of the largest: fp16 would lose what large features
                # make small.
                b_most = tl.maximum(tl.max(b_rstd, 0), 1e-30)
                b_p *= (b_rstd / b_most)[None, :]
                b_ds *= (b_rstd / b_most)[None, :]
            b_p_t = tl.trans(b_p.to(p_x.dtype.element_ty))
            b_ds = b_ds.to(p_x.dtype.element_ty)
            b_ds_t = tl.trans(b_ds)
            if p_mean is not None:
                b_offset = tl.sum(b_ds.to(tl.float32) * b_mean[None, :], 1)
                # dF = rho (dX - a - c X) = rho dX - b_base - b_slope F
                b_a = tl.dot(b_ds_t, first_column(b_row_u / D, p_x), input_precision=PRECISION)
                b_a = tl.dot(b_p_t, first_column(b_row_dz / D, p_x), b_a, input_precision=PRECISION)
                b_slope = b_c * b_rstd * b_rstd
                b_base = tl.sum(b_a, 1) * b_most - b_slope * b_mean

            o_turn = tl.zeros([BLOCK_R], dtype=tl.int32) + i_tile
            o_row_turn = tl.zeros([BLOCK_N], dtype=tl.int32) + i_r
            o_dx = i_b * N * D + o_n * D  # [BLOCK_N]
            for i_back in range(0, D, BLOCK_D):
                # From the last channels, which the walk above left in the cache, to the first.
                o_k = (tl.cdiv(D, BLOCK_D) - 1) * BLOCK_D - i_back + o_d
                m_k = channel_mask(o_k, D, EVEN)
                m_rows = m_r[:, None] & m_k[None, :]
                b_u = tl.load(p_u_rows[:, None] + o_k[None, :] * s_u_d, mask=m_rows, other=0.0)
                b_dz = tl.load(p_dz_rows[:, None] + o_k[None, :] * s_dz_d, mask=m_rows, other=0.0)
                b_x = tl.load(p_x_rows[:, None] + o_k[None, :] * s_x_d, mask=m_n[:, None] & m_k[None, :], other=0.0)
                b_du = tl.dot(b_ds, b_x, input_precision=PRECISION)
                b_dx = tl.dot(b_ds_t, b_u, input_precision=PRECISION)
                b_dx = tl.dot(b_p_t, b_dz, b_dx, input_precision=PRECISION)
                if p_mean is not None:
                    b_du = (b_du - b_offset[:, None]) * b_most
                    b_dx = b_dx * b_most - b_base[:, None] - b_slope[:, None] * b_x.to(tl.float32)
                o_du_tile = o_du[:, None] + o_k[None, :]
                if TILES > 1:
                    b_du += tl.load(p_du_wide + o_du_tile, mask=m_rows & (o_turn > 0)[:, None], other=0.0)
                    tl.store(p_du_wide + o_du_tile, b_du, mask=m_rows & (o_turn < TILES - 1)[:, None])
                tl.store(p_du + o_du_tile, b_du.to(p_du.dtype.element_ty), mask=m_rows & (o_turn == TILES - 1)[:, None])
                o_dx_tile = o_dx[:, None] + o_k[None, :]
                m_dx = m_store[:, None] & m_k[None, :]
                if ROW_TILES > 1:
                    b_dx += tl.load(p_dx_wide + o_dx_tile, mask=m_dx & (o_row_turn > 0)[:, None], other=0.0)
                    tl.store(p_dx_wide + o_dx_tile, b_dx, mask=m_dx & (o_row_turn < ROW_TILES - 1)[:, None])
                m_dx = m_dx & (o_row_turn == ROW_TILES - 1)[:, None]
                tl.store(p_dx + o_dx_tile, b_dx.to(p_dx.dtype.element_ty), mask=m_dx)
            if TILES * ROW_TILES > 1:
                tl.debug_barrier()  # the next tile reads what other threads wrote


def launch_backward(
    dz: Tensor,
    dkl: Tensor,
    z: Tensor,
    lse: Tensor,
    target_sum: Tensor,
    mean: Tensor,
    rstd: Tensor,
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
    if u.numel() == 0:
        return u.new_zeros(u.shape), x.new_zeros(x.shape)
    empty = allocator(u)
    dx = empty(batch, patches, dim, dtype=x.dtype)

    def run(blocks: Blocks) -> tuple[Tensor, Tensor]:
        row_tiles = tiles(rows, blocks.rows)
        turns, parts = split(tiles(patches, blocks.patches), batch, processors(u))
        du_wide = empty(batch, parts, rows, dim) if max(turns, parts) > 1 else None
        du = du_wide if du_wide is not None and parts > 1 else empty(batch, rows, dim, dtype=u.dtype)
        dx_wide = empty(batch, patches, dim) if row_tiles > 1 else None
        backward_kernel[(batch * parts,)](
            *(u, x, target, row_weight, target_scale, pointer(key_padding_mask), z, lse, target_sum),
            *((mean, rstd) if mean.numel() else (None, None)),
            *(dz, dkl, du, du_wide, dx, dx_wide),
            *(*u.stride(), *x.stride(), *strides(target, 3), *strides(row_weight, 2)),
            *(*strides(target_scale, 2), *strides(key_padding_mask, 2), *dz.stride(), *dkl.stride()),
            *(words, patches, dim, rows, parts),
            TILES=turns,
            ROW_TILES=row_tiles,
            EVEN=dim % blocks.channels == 0,
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
        return (du if parts == 1 else du.sum(1)).to(u.dtype).view(u.shape), dx

    with device_of(u):
        return launch(problem_of("backward", u, x, target, mean.numel() > 0), u.device, run)

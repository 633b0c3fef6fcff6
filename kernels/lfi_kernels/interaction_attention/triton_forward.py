"""The fused forward pass: X is read from memory once, K, V, LN(X) and the maps are never written.

A program holds one tile of scores, [BLOCK_R, BLOCK_N]: heads and words of a sample against its patches (see `blocks`).
Where several tiles cover the patches it takes them in turn, as an online softmax does, and keeps z in fp32 in scratch
memory of its own. The divergence runs along, against the running maximum m, so that large scores cost no digits:

    kl = sum T log T - sum T (S - m) + (sum T) log sum exp(S - m)

Where too few samples fill the GPU, they are cut into parts of several tiles, one program each; see `triton_combine`.

Layer norm costs no pass of its own. With mean mu and reciprocal deviation rho of each patch, X = rho (F - mu):

    S = rho (u F^T - (sum u) mu)    z = (P rho) F - sum P rho mu

Letters of the suffixes: B sample, J part, R = H*M row, N patch, D channel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lfi_kernels.interaction_attention.blocks import Blocks, split, tiles
from lfi_kernels.interaction_attention.triton_combine import combine
from lfi_kernels.interaction_attention.triton_entropy import launch_entropy
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
    channel_mask,
    eighths,
    exp,
    patch_mask,
    row_weights,
    target_tile,
)
from lfi_kernels.interaction_attention.tuning import launch

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
    p_h,  # [B, M] contiguous fp32: sum T log T, or None without a target
    p_z,  # [B, J, R, D] contiguous: fp32 where J > 1, else u's dtype
    p_wide,  # [B, J, R, D] contiguous fp32: z of the tiles so far, or None where one tile is all
    p_kl,  # [B, J, R] contiguous fp32; where J > 1 without sum T log T and the weight
    p_lse,  # [B, J, R] contiguous fp32; of an empty row -inf where J > 1, else +inf
    p_sum,  # [B, J, R] contiguous fp32: sum of the target
    p_mean,  # [B, N] contiguous fp32: mean of a patch, or None without layer norm
    p_rstd,  # [B, N] contiguous fp32: reciprocal of its deviation, or None
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
    EPS,
    TILES: tl.constexpr,
    EVEN: tl.constexpr,
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
    o_d = tl.arange(0, BLOCK_D)
    o_m = o_r % M
    m_r = o_r < R
    o_out = (i_b * J + i_j) * R + o_r  # [BLOCK_R]
    p_u_rows = p_u + i_b * s_u_b + (o_r // M) * s_u_h + o_m * s_u_m  # [BLOCK_R]

    b_max = tl.full([BLOCK_R], IGNORED, dtype=tl.float32)
    b_l = tl.zeros([BLOCK_R], dtype=tl.float32)
    b_kl = tl.zeros([BLOCK_R], dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_R], dtype=tl.float32)
    for i_tile in tl.range(TILES, disable_licm=True):
        o_n = (i_j * TILES + i_tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = patch_mask(p_pad, i_b, o_n, s_pad_b, s_pad_n, N, ALIGN)
        p_x_rows = p_x + i_b * s_x_b + o_n * s_x_n  # [BLOCK_N]

        b_s = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
        if p_mean is not None:
            # Sums of the distance from the first channel: it is within sqrt(D) deviations of the mean, so that the
            # variance, a difference of two such sums, loses few digits whatever the offset of the features.
            b_first = tl.load(p_x_rows, mask=m_n, other=0.0).to(tl.float32)
            b_sum_x = tl.zeros([BLOCK_N, BLOCK_D // 8], dtype=tl.float32)
            b_sum_xx = tl.zeros([BLOCK_N, BLOCK_D // 8], dtype=tl.float32)
            b_sum_u = tl.zeros([BLOCK_R, BLOCK_D // 8], dtype=tl.float32)
        for i_d in range(0, D, BLOCK_D):
            o_k = i_d + o_d
            m_k = channel_mask(o_k, D, EVEN)
            b_u = tl.load(p_u_rows[:, None] + o_k[None, :] * s_u_d, mask=m_r[:, None] & m_k[None, :], other=0.0)
            b_x = tl.load(p_x_rows[:, None] + o_k[None, :] * s_x_d, mask=m_n[:, None] & m_k[None, :], other=0.0)
            b_s = tl.dot(b_u, tl.trans(b_x), b_s, input_precision=PRECISION)
            if p_mean is not None:
                b_far = tl.where(m_k[None, :], b_x.to(tl.float32) - b_first[:, None], 0.0)
                b_sum_x += eighths(b_far)
                b_sum_xx += eighths(b_far * b_far)
                b_sum_u += eighths(b_u.to(tl.float32))
        if p_mean is not None:
            b_mean = tl.sum(b_sum_x, 1) / D
            b_rstd = tl.rsqrt(tl.maximum(tl.sum(b_sum_xx, 1) / D - b_mean * b_mean, 0.0) + EPS)
            b_rstd = tl.where(m_n, b_rstd, 0.0)
            b_most = tl.maximum(tl.max(b_rstd, 0), 1e-30)
            b_mean += b_first
            m_own = o_n < tl.where(i_r == 0, N, 0)
            tl.store(p_mean + i_b * N + o_n, b_mean, mask=m_own)
            tl.store(p_rstd + i_b * N + o_n, b_rstd, mask=m_own)
            b_s = b_s * b_rstd[None, :] - tl.sum(b_sum_u, 1)[:, None] * (b_mean * b_rstd)[None, :]

        # A patch that does not count scores a finite number, so that times a target of 0 it is 0, not NaN. Without
        # any other the softmax is uniform, over rows of X that were read as 0.
        b_s = tl.where(m_n[None, :], b_s, IGNORED)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_s = b_s - b_new[:, None]
        b_before = b_l * exp(b_max - b_new)
        b_l = b_before + tl.sum(exp(b_s), 1)
        b_before = b_before / b_l  # the share of the tiles before in all attention so far
        b_log_l = tl.log(b_l)
        b_kl += b_sum * (b_new - b_max)
        b_max = b_new
        if p_target is not None:
            b_t, b_unit = target_tile(
                *(p_target, p_weight, p_scale, i_b, o_m, o_n, m_n, s_t_b, s_t_m, s_t_n),
                *(s_w_b, s_w_m, s_scale_b, s_scale_m, M, SQRT, ALIGN, BLOCK_R, BLOCK_N),
            )
            b_kl -= b_unit * tl.sum(b_t * b_s, 1)
            b_sum += b_unit * tl.sum(b_t, 1)

        b_p = exp(b_s - b_log_l[:, None])  # after the target, so that the two are not held at once
        if p_mean is not None:
            # The largest is kept apart: fp16 would lose what large features make small.
            b_p = (b_p * (b_rstd / b_most)[None, :]).to(p_x.dtype.element_ty)
            b_offset = tl.sum(b_p.to(tl.float32) * b_mean[None, :], 1)
        else:
            b_p = b_p.to(p_x.dtype.element_ty)
        o_turn = tl.zeros([BLOCK_R], dtype=tl.int32) + i_tile
        m_later = (o_turn > 0)[:, None]
        m_last = (o_turn == TILES - 1)[:, None]
        for i_back in range(0, D, BLOCK_D):
            # From the last channels, which the walk above left in the cache, to the first.
            o_k = (tl.cdiv(D, BLOCK_D) - 1) * BLOCK_D - i_back + o_d
            m_k = channel_mask(o_k, D, EVEN)
            m_z = m_r[:, None] & m_k[None, :]
            b_x = tl.load(p_x_rows[:, None] + o_k[None, :] * s_x_d, mask=m_n[:, None] & m_k[None, :], other=0.0)
            b_z = tl.dot(b_p, b_x, input_precision=PRECISION)
            if p_mean is not None:
                b_z = (b_z - b_offset[:, None]) * b_most
            o_z = o_out[:, None] * D + o_k[None, :]
            if TILES > 1:
                b_z += b_before[:, None] * tl.load(p_wide + o_z, mask=m_z & m_later, other=0.0)
                tl.store(p_wide + o_z, b_z, mask=m_z & (o_turn < TILES - 1)[:, None])
            tl.store(p_z + o_z, b_z.to(p_z.dtype.element_ty), mask=m_z & m_last)
        if TILES > 1:
            tl.debug_barrier()  # the next tile reads what other threads wrote

    m_empty = b_max == IGNORED
    b_log_l = tl.log(b_l)
    b_kl += b_sum * b_log_l
    if not SPLIT and p_h is not None:
        b_h = tl.load(p_h + i_b * M + o_m, mask=m_r, other=0.0)
        b_kl = (b_h + b_kl) * row_weights(p_weight, i_b, o_m, m_r, s_w_b, s_w_m)
    b_lse = tl.where(m_empty, float("-inf") if SPLIT else float("inf"), b_max + b_log_l)
    tl.store(p_kl + o_out, b_kl, mask=m_r)
    tl.store(p_lse + o_out, b_lse, mask=m_r)
    tl.store(p_sum + o_out, b_sum, mask=m_r)


def launch_forward(
    u: Tensor,
    x: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    companding: str,
    layer_norm_eps: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the forward kernel on checked arguments.

    Returns:
        z [B, H, M, D] in u's dtype; kl, lse (+inf where every patch is ignored) and the sum of the target, each
        [B, H, M] in fp32; mean and reciprocal deviation of each patch, [B, N] in fp32, or [0] without layer norm.
    """
    u, x = within_reach(u), within_reach(x)
    target = None if target is None else within_reach(target)
    batch, heads, words, dim = u.shape
    rows, patches = heads * words, x.shape[1]
    empty = allocator(u)
    z = empty(batch, heads, words, dim, dtype=u.dtype)
    kl, lse, target_sum = (empty(batch, heads, words) for _ in range(3))
    mean, rstd = (empty(batch, patches) if layer_norm_eps else empty(0) for _ in range(2))
    if z.numel() == 0:
        return z, kl, lse, target_sum, mean, rstd

    def run(blocks: Blocks) -> tuple[Tensor, Tensor]:
        row_tiles = tiles(rows, blocks.rows)
        turns, parts = split(tiles(patches, blocks.patches), batch * row_tiles, processors(u))
        wide = empty(batch, parts, rows, dim) if max(turns, parts) > 1 else None
        out = (z, kl, lse, target_sum)
        if wide is not None and parts > 1:
            out = (wide, empty(batch, parts, rows), empty(batch, parts, rows), empty(batch, parts, rows))
        forward_kernel[(batch * parts * row_tiles,)](
            *(u, x, target, row_weight, target_scale, pointer(key_padding_mask), entropy, out[0], wide, *out[1:]),
            *((mean, rstd) if layer_norm_eps else (None, None)),
            *(*u.stride(), *x.stride(), *strides(target, 3), *strides(row_weight, 2)),
            *(*strides(target_scale, 2), *strides(key_padding_mask, 2)),
            *(words, patches, dim, rows, row_tiles, parts, layer_norm_eps or 0.0),
            TILES=turns,
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
        if parts > 1:
            combine(out, row_weight, entropy, (z, kl, lse, target_sum))
        return z, kl

    with device_of(u):
        entropy = None
        if target is not None:
            entropy = launch_entropy(target, row_weight, target_scale, key_padding_mask, companding)
        launch(problem_of("forward", u, x, target, layer_norm_eps is not None), u.device, run)
    return z, kl, lse, target_sum, mean, rstd

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs
"""Queries against keys and values: scores, softmax, values and divergence in one program, and their gradients.

A program takes a block of rows: the same queries of several heads (HP) whose columns lie side by side, each row zero in
the columns of other heads, so that one product serves all of them. It takes the patches in tiles, as an online softmax
does, and no map is written. The divergence runs along, against the running maximum m, so that large scores cost no
digits: kl = sum T log T - sum T (S - m) + (sum T) log sum exp(S - m). Maps are found by `p_row`, which names the row of
the target of each query that has one; the others read none, and a block without any computes no divergence.

Backward, with g the gradient of kl and w its weight:

    dS = P (dP - delta) - g w T    delta = rowsum(P dP) - g w sum T = o . do - g w sum T
    dK = dS^T q    dV = P^T do    dq = dS K

and, since keys and values are products of layer-normed features, G = rstd [dK | dV], and the one sum over the channels
that layer norm's gradient takes: mean_D(dX X) = (dK . K + dV . V) / D = (sum dS S + sum P dP) / D, by patch.

Where one block holds all queries, one kernel does all of it. Else the gradients of the queries and those of the patches
are two kernels, each of which adds up its own sums in its own registers: no atomics, the same bits every time.

Letters: B sample, M query, H head, d = Dq/H, R row of a block, N patch. Prefixes: p_ pointer, b_ block in registers,
o_ offset, m_ mask, i_ index. kernels/README.md has the maths.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
IGNORED = tl.constexpr(-1e38)
"""Score of a patch that does not count; no score reaches it."""


@triton.jit
def map_rows(p_row, p_weight, i_b, o_m, m, M):
    """Row of the target that holds a query's map, and the map's weight: 0 where there is none to be compared with."""
    o_row = i_b * M + o_m
    if p_row is not None:
        o_row = tl.load(p_row + o_row, mask=m, other=-1).to(tl.int64)
        m = m & (o_row >= 0)
    b_w = tl.where(m, 1.0, 0.0)
    if p_weight is not None:
        b_w = tl.load(p_weight + o_row, mask=m, other=0.0).to(tl.float32)
    return o_row, b_w


@triton.jit
def stored_maps(p_target, o_row, b_w, o_n, m_n, N: tl.constexpr, POLICY: tl.constexpr = ""):
    """Maps [BLOCK_M, BLOCK_N] for a product, or with a policy as they are stored; those of weight 0 are never read."""
    m = (b_w != 0.0)[:, None] & m_n[None, :]
    b_t = tl.load(p_target + o_row[:, None] * N + o_n[None, :], mask=m, other=0, eviction_policy=POLICY)
    if p_target.dtype.element_ty == tl.uint8:
        b_t = b_t.to(tl.float16)  # holds 0 to 255
    elif POLICY == "":
        b_t = tl.where(tl.abs(b_t) < float("inf"), b_t, 0.0)  # 0 times NaN would be NaN for all queries of the block
    return b_t


@triton.jit
def map_unit(p_scale, o_row, m, SQRT: tl.constexpr):
    """What one unit of the stored curve is worth, [BLOCK_R]: the scale over the curve's value for code 255."""
    b_unit = tl.where(m, 1.0, 0.0)
    if p_scale is not None:
        b_unit = tl.load(p_scale + o_row, mask=m, other=0.0).to(tl.float32) / (255.0 * 255.0 if SQRT else 255.0)
    return b_unit


@triton.jit
def patch_tile(p_pad, i_b, i_n, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Patches of a tile, and which of them exist and are not ignored."""
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    if p_pad is not None:
        m_n = m_n & (tl.load(p_pad + i_b * N + o_n, mask=m_n, other=1) == 0)
    return o_n, m_n


@triton.jit(do_not_specialize=["M"])
def forward_kernel(
    p_q,  # [B, M, Dq] fp16, bf16 or fp32, scale in it; samples s_q apart
    p_kv,  # [B, N, 2 Dq] of q's dtype: keys, then values
    p_target,  # [R, N] uint8 or floating, or None
    p_row,  # [B, M] int32: row of the target, -1 = none; None: row b M + m
    p_weight,  # [R] floating, or None
    p_scale,  # [R] floating where the target is uint8, else None
    p_pad,  # [B, N] uint8, not 0 = ignore, or None
    p_o,  # [B, M, Dq] of q's dtype: P V
    p_lse,  # [B, H, M] fp32; +inf where every patch is ignored
    p_kl,  # [R, H] fp32, or None without a target
    p_t_sum,  # [R, H] fp32: sum of the map, or None
    s_q,
    M,
    N: tl.constexpr,
    H: tl.constexpr,
    DH: tl.constexpr,
    HP: tl.constexpr,
    W: tl.constexpr,
    SQRT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    GROUPS: tl.constexpr = H // HP
    DQ: tl.constexpr = H * DH
    word_blocks = (M + W - 1) // W
    i = tl.program_id(0)
    i_w = i % word_blocks
    i_g = (i // word_blocks) % GROUPS
    i_b = (i // (word_blocks * GROUPS)).to(tl.int64)
    o_r = tl.arange(0, BLOCK_R)
    o_h = o_r // W
    o_m = i_w * W + o_r % W
    m_r = (o_r < HP * W) & (o_m < M)
    o_c = tl.arange(0, BLOCK_C)
    m_own = m_r[:, None] & (o_h[:, None] == (o_c // DH)[None, :])
    o_q = o_m[:, None] * DQ + (i_g * HP * DH + o_c)[None, :]
    m_c = o_c < HP * DH
    b_q = tl.load(p_q + i_b * s_q + o_q, mask=m_own, other=0.0)

    b_top = tl.full([BLOCK_R], IGNORED, tl.float32)
    b_total = tl.zeros([BLOCK_R], tl.float32)
    b_o = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    if p_target is not None:
        o_word = i_w * W + tl.arange(0, BLOCK_M)
        o_word_row, b_word_w = map_rows(p_row, p_weight, i_b, o_word, (o_word < M) & (tl.arange(0, BLOCK_M) < W), M)
        m_spread = ((o_r % W)[:, None] == tl.arange(0, BLOCK_M)[None, :]) & m_r[:, None]
        has_maps = True
        if p_row is not None:
            has_maps = tl.max((b_word_w != 0.0).to(tl.int32), 0) > 0
        b_kl = tl.zeros([BLOCK_R], tl.float32)
        b_t_sum = tl.zeros([BLOCK_R], tl.float32)
        b_t_ln_t = tl.zeros([BLOCK_M], tl.float32)
    p_keys = p_kv + i_b * (N * 2 * DQ) + i_g * (HP * DH)
    for i_n in tl.range((N + BLOCK_N - 1) // BLOCK_N, disable_licm=True):
        o_n, m_n = patch_tile(p_pad, i_b, i_n, N, BLOCK_N)
        p_k = p_keys + (o_n[:, None] * (2 * DQ) + o_c[None, :])
        m_kv = m_n[:, None] & m_c[None, :]
        b_k = tl.load(p_k, mask=m_kv, other=0.0)
        b_v = tl.load(p_k + DQ, mask=m_kv, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        # A patch that does not count scores a finite number, so that times a map of 0 it is 0, not NaN.
        b_s = tl.where(m_n[None, :], b_s, IGNORED)
        b_new = tl.maximum(b_top, tl.max(b_s, 1))
        b_s = b_s - b_new[:, None]
        b_keep = tl.exp2((b_top - b_new) * LOG2_E)
        if p_target is not None:
            b_kl += b_t_sum * (b_new - b_top)
            if has_maps:
                b_stored = stored_maps(p_target, o_word_row, b_word_w, o_n, m_n, N)
                # Read once, and spread over its heads by a product with ones and zeros: exact (fp32 keeps 22 bits).
                b_t = tl.dot(m_spread.to(b_stored.dtype), b_stored, input_precision="tf32x3")
                if SQRT:
                    b_t *= b_t
                b_kl -= tl.sum(b_t * b_s, 1)
                b_t_sum += tl.sum(b_t, 1)
                # T log T by queries: by heads as well it would be the same logarithm HP times.
                if p_target.dtype.element_ty == tl.uint8:
                    b_c = b_stored.to(tl.float32)
                else:
                    # Read once more: the tile above belongs to the product, see `triton_project`.
                    b_c = stored_maps(p_target, o_word_row, b_word_w, o_n, m_n, N, "evict_first").to(tl.float32)
                b_ln = tl.log2(tl.where(b_c == 0.0, 1.0, b_c)) * LN_2
                if SQRT:
                    b_ln *= 2.0
                    b_c *= b_c
                b_t_ln_t += tl.sum(b_c * b_ln, 1)
        b_top = b_new
        b_e = tl.exp2(b_s * LOG2_E)
        b_total = b_total * b_keep + tl.sum(b_e, 1)
        b_o = tl.dot(b_e.to(b_k.dtype), b_v, b_o * b_keep[:, None], input_precision=PRECISION)

    tl.store(p_o + i_b * M * DQ + o_q, (b_o / b_total[:, None]).to(p_o.dtype.element_ty), mask=m_own)
    b_ln_total = tl.log2(b_total) * LN_2
    o_head = i_g * HP + o_h
    b_lse = tl.where(b_top == IGNORED, float("inf"), b_top + b_ln_total)
    tl.store(p_lse + (i_b * H + o_head) * M + o_m, b_lse, mask=m_r)
    if p_target is not None:
        o_row, b_w = map_rows(p_row, p_weight, i_b, o_m, m_r, M)
        b_unit = map_unit(p_scale, o_row, b_w != 0.0, SQRT)
        b_ln_unit = tl.log2(tl.where(b_unit == 0.0, 1.0, b_unit)) * LN_2
        b_entropy = tl.sum(tl.where(m_spread, b_t_ln_t[None, :], 0.0), 1)
        b_kl = b_w * (b_unit * (b_kl + b_entropy + b_t_sum * (b_ln_total + b_ln_unit)))
        b_t_sum = tl.where(tl.abs(b_entropy) < float("inf"), b_t_sum, float("nan"))  # left out above: see `stored_maps`
        m_out = m_r & (o_row >= 0)
        tl.store(p_kl + o_row * H + o_head, b_kl, mask=m_out)
        tl.store(p_t_sum + o_row * H + o_head, b_unit * b_t_sum, mask=m_out)


@triton.jit
def row_block(
    p_row, p_weight, p_scale, p_lse, p_t_sum, p_dkl, p_delta, i_b, i_g, i_w, M,
    H: tl.constexpr, HP: tl.constexpr, W: tl.constexpr, SQRT: tl.constexpr, WITH_MAPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """What the gradient needs of a block's rows, [BLOCK_R]: lse in powers of two, delta, and g w unit."""
    o_r = tl.arange(0, BLOCK_R)
    o_head = i_g * HP + o_r // W
    o_m = i_w * W + o_r % W
    m_r = (o_r < HP * W) & (o_m < M)
    o_out = (i_b * H + o_head) * M + o_m
    b_lse = tl.load(p_lse + o_out, mask=m_r, other=float("inf")) * LOG2_E
    b_delta = tl.load(p_delta + o_out, mask=m_r, other=0.0)
    b_gw = tl.zeros([BLOCK_R], tl.float32)
    if WITH_MAPS:
        o_row, b_w = map_rows(p_row, p_weight, i_b, o_m, m_r, M)
        b_gw = b_w * tl.load(p_dkl + o_row * H + o_head, mask=b_w != 0.0, other=0.0)
        b_delta -= b_gw * tl.load(p_t_sum + o_row * H + o_head, mask=b_w != 0.0, other=0.0)
        b_gw *= map_unit(p_scale, o_row, b_w != 0.0, SQRT)
    return b_lse, b_delta, b_gw


@triton.jit
def map_gradient(
    p_target, p_row, p_weight, i_b, i_w, o_n, m_n, b_gw, M,
    N: tl.constexpr, HP: tl.constexpr, W: tl.constexpr, SQRT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """g w T of a tile, [BLOCK_N, BLOCK_R]."""
    o_place = tl.arange(0, BLOCK_M)
    o_word = i_w * W + o_place
    o_word_row, b_word_w = map_rows(p_row, p_weight, i_b, o_word, (o_word < M) & (o_place < W), M)
    b_stored = stored_maps(p_target, o_word_row, b_word_w, o_n, m_n, N)
    o_r = tl.arange(0, BLOCK_R)
    m_spread = (o_place[:, None] == (o_r % W)[None, :]) & (o_r < HP * W)[None, :]
    b_t = tl.dot(tl.trans(b_stored), m_spread.to(b_stored.dtype), input_precision="tf32x3")
    if SQRT:
        b_t *= b_t
    return b_t * b_gw[None, :]


@triton.jit(do_not_specialize=["M", "T"])
def queries_kernel(
    p_q,  # [B, M, Dq], as in `forward_kernel`
    p_kv,  # [B, N, 2 Dq]
    p_target,  # [R, N] or None
    p_row,  # [B, M] int32 or None
    p_weight,  # [R] or None
    p_scale,  # [R] or None
    p_pad,  # [B, N] uint8 or None
    p_do,  # [B, M, Dq] of q's dtype: gradient of o
    p_lse,  # [B, H, M] fp32
    p_delta,  # [B, H, M] fp32: o . do
    p_t_sum,  # [R, H] fp32 or None
    p_dkl,  # [R, H] fp32 or None: gradient of kl
    p_rstd,  # [B, N] fp32, or None without layer norm
    p_dq,  # [B, M, Dq] of q's dtype
    p_g,  # [B, N, 2 Dq] of q's dtype: rstd [dK | dV]; None where `keys_kernel` writes it
    p_coef,  # [GROUPS, B, N] fp32: rstd^2 mean_D(dX X), or None
    s_q,
    M,
    T,
    INVERSE_D,
    N: tl.constexpr,
    H: tl.constexpr,
    DH: tl.constexpr,
    HP: tl.constexpr,
    W: tl.constexpr,
    SQRT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    GROUPS: tl.constexpr = H // HP
    DQ: tl.constexpr = H * DH
    word_blocks = (M + W - 1) // W
    i = tl.program_id(0)
    i_w = i % word_blocks
    i_g = (i // word_blocks) % GROUPS
    i_b = (i // (word_blocks * GROUPS)).to(tl.int64)
    o_r = tl.arange(0, BLOCK_R)
    o_m = i_w * W + o_r % W
    m_r = (o_r < HP * W) & (o_m < M)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < HP * DH
    m_own = m_r[:, None] & ((o_r // W)[:, None] == (o_c // DH)[None, :])
    o_q = o_m[:, None] * DQ + (i_g * HP * DH + o_c)[None, :]
    b_q = tl.load(p_q + i_b * s_q + o_q, mask=m_own, other=0.0)
    b_do = tl.load(p_do + i_b * M * DQ + o_q, mask=m_own, other=0.0)
    b_lse, b_delta, b_gw = row_block(
        p_row, p_weight, p_scale, p_lse, p_t_sum, p_dkl, p_delta, i_b, i_g, i_w, M,
        H, HP, W, SQRT, p_target is not None, BLOCK_R,
    )  # fmt: skip
    has_maps = True
    if p_row is not None:
        has_maps = tl.max((b_gw != 0.0).to(tl.int32), 0) > 0

    # The matrix units of sm_90 take results of 64 rows or more: so it is dq, or its transpose.
    IS_TALL: tl.constexpr = BLOCK_C < 64 and BLOCK_R >= 64
    if IS_TALL:
        b_dq = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    else:
        b_dq_t = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    p_keys = p_kv + i_b * (N * 2 * DQ) + i_g * (HP * DH)
    for i_n in tl.range((N + BLOCK_N - 1) // BLOCK_N, disable_licm=True):
        o_n, m_n = patch_tile(p_pad, i_b, i_n, N, BLOCK_N)
        o_kv = o_n[:, None] * (2 * DQ) + o_c[None, :]
        b_k = tl.load(p_keys + o_kv, mask=m_n[:, None] & m_c[None, :], other=0.0)
        b_v = tl.load(p_keys + DQ + o_kv, mask=m_n[:, None] & m_c[None, :], other=0.0)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [BLOCK_N, BLOCK_R]
        b_p = tl.where(m_n[:, None], tl.exp2(b_s * LOG2_E - b_lse[None, :]), 0.0)
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[None, :])
        if p_target is not None:  # noqa: SIM102 - the one is known to the compiler, the other is not
            if has_maps:
                b_ds -= map_gradient(
                    p_target, p_row, p_weight, i_b, i_w, o_n, m_n, b_gw, M, N, HP, W, SQRT, BLOCK_R, BLOCK_M
                )
        if p_g is not None:
            p_g_tile = p_g + i_b * (N * 2 * DQ) + i_g * (HP * DH) + o_kv
            m_g = (o_n < N)[:, None] & m_c[None, :]  # ignored patches get their zeros
            b_dv = tl.dot(b_p.to(b_k.dtype), b_do, input_precision=PRECISION)
            b_dk = tl.dot(b_ds.to(b_k.dtype), b_q, input_precision=PRECISION)
            if p_rstd is not None:
                b_rstd = tl.load(p_rstd + i_b * N + o_n, mask=m_n, other=0.0)
                b_coef = tl.sum(b_p * b_dp + b_ds * b_s, 1) * b_rstd * b_rstd * INVERSE_D
                tl.store(p_coef + i_g * T.to(tl.int64) + i_b * N + o_n, b_coef, mask=o_n < N)
                b_dv *= b_rstd[:, None]
                b_dk *= b_rstd[:, None]
            tl.store(p_g_tile, b_dk.to(p_g.dtype.element_ty), mask=m_g)
            tl.store(p_g_tile + DQ, b_dv.to(p_g.dtype.element_ty), mask=m_g)
        if IS_TALL:
            b_dq = tl.dot(tl.trans(b_ds.to(b_k.dtype)), b_k, b_dq, input_precision=PRECISION)
        else:
            b_dq_t = tl.dot(tl.trans(b_k), b_ds.to(b_k.dtype), b_dq_t, input_precision=PRECISION)
    p_out = p_dq + i_b * M * DQ
    if IS_TALL:
        tl.store(p_out + o_q, b_dq.to(p_dq.dtype.element_ty), mask=m_own)
    else:
        m_own_t = m_r[None, :] & ((o_r // W)[None, :] == (o_c // DH)[:, None])
        o_q_t = o_m[None, :] * DQ + (i_g * HP * DH + o_c)[:, None]
        tl.store(p_out + o_q_t, b_dq_t.to(p_dq.dtype.element_ty), mask=m_own_t)


@triton.jit(do_not_specialize=["M", "T"])
def keys_kernel(
    p_q, p_kv, p_target, p_row, p_weight, p_scale, p_pad, p_do, p_lse, p_delta, p_t_sum, p_dkl, p_rstd,
    p_g, p_coef, s_q, M, T, INVERSE_D,
    N: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, HP: tl.constexpr, W: tl.constexpr,
    SQRT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """G and coef of one tile of patches from all blocks of queries in turn; arguments as in `queries_kernel`."""
    GROUPS: tl.constexpr = H // HP
    DQ: tl.constexpr = H * DH
    TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i = tl.program_id(0)
    i_n = i % TILES
    i_g = (i // TILES) % GROUPS
    i_b = (i // (TILES * GROUPS)).to(tl.int64)
    o_r = tl.arange(0, BLOCK_R)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < HP * DH
    o_n, m_n = patch_tile(p_pad, i_b, i_n, N, BLOCK_N)
    o_kv = i_b * (N * 2 * DQ) + i_g * (HP * DH) + o_n[:, None] * (2 * DQ) + o_c[None, :]
    b_k = tl.load(p_kv + o_kv, mask=m_n[:, None] & m_c[None, :], other=0.0)
    b_v = tl.load(p_kv + DQ + o_kv, mask=m_n[:, None] & m_c[None, :], other=0.0)
    b_dk = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    b_coef = tl.zeros([BLOCK_N], tl.float32)
    for i_w in tl.range(0, (M + W - 1) // W, disable_licm=True):
        o_m = i_w * W + o_r % W
        m_r = (o_r < HP * W) & (o_m < M)
        m_own = m_r[:, None] & ((o_r // W)[:, None] == (o_c // DH)[None, :])
        o_q = o_m[:, None] * DQ + (i_g * HP * DH + o_c)[None, :]
        b_q = tl.load(p_q + i_b * s_q + o_q, mask=m_own, other=0.0)
        b_do = tl.load(p_do + i_b * M * DQ + o_q, mask=m_own, other=0.0)
        b_lse, b_delta, b_gw = row_block(
            p_row, p_weight, p_scale, p_lse, p_t_sum, p_dkl, p_delta, i_b, i_g, i_w, M,
            H, HP, W, SQRT, p_target is not None, BLOCK_R,
        )  # fmt: skip
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
        b_p = tl.where(m_n[:, None], tl.exp2(b_s * LOG2_E - b_lse[None, :]), 0.0)
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[None, :])
        if p_target is not None:
            has_maps = True
            if p_row is not None:
                has_maps = tl.max((b_gw != 0.0).to(tl.int32), 0) > 0
            if has_maps:
                b_ds -= map_gradient(
                    p_target, p_row, p_weight, i_b, i_w, o_n, m_n, b_gw, M, N, HP, W, SQRT, BLOCK_R, BLOCK_M
                )
        b_coef += tl.sum(b_p * b_dp + b_ds * b_s, 1)
        b_dv = tl.dot(b_p.to(b_k.dtype), b_do, b_dv, input_precision=PRECISION)
        b_dk = tl.dot(b_ds.to(b_k.dtype), b_q, b_dk, input_precision=PRECISION)
    if p_rstd is not None:
        b_rstd = tl.load(p_rstd + i_b * N + o_n, mask=m_n, other=0.0)
        p_out = p_coef + i_g * T.to(tl.int64) + i_b * N + o_n
        tl.store(p_out, b_coef * b_rstd * b_rstd * INVERSE_D, mask=o_n < N)
        b_dv *= b_rstd[:, None]
        b_dk *= b_rstd[:, None]
    m_g = (o_n < N)[:, None] & m_c[None, :]
    tl.store(p_g + o_kv, b_dk.to(p_g.dtype.element_ty), mask=m_g)
    tl.store(p_g + DQ + o_kv, b_dv.to(p_g.dtype.element_ty), mask=m_g)

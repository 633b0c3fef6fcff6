# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs
"""The products over the patches: features to keys and values, and back. No layer norm is written, and none is read.

With the mean over the channels taken out of every column of a weight W, LN(x) W = rstd (x W): no mean is left in the
product, and nothing cancels. So `project` reads x once, takes mean and rstd of every patch on the way, and scales what
comes out. Backward, with G = rstd dKV as `triton_attend` writes it (kernels/README.md has the maths):

    dx = G W^T - coef (x - mean)     the gradient of layer norm is the end of a product
    dW = x^T G                       cut over the patches, summed in fp32 in a fixed order

No tile that a matrix product reads from shared memory feeds registers as well. Triton (3.6 and 3.8 were seen) gives
such a tile of a pipelined loop one slot too few, and overwrites it under the product: `triton_report` finds those in
compiled code.

Letters: T = B*N patches, D channels, C = 2*Dq columns. Prefixes: p_ pointer, b_ block, o_ offset, m_ mask, i_ index.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lfi_kernels.interaction_attention.tiles import Problem, Tile, blocks, launch


@triton.jit(do_not_specialize=["T"])
def project_kernel(
    p_x,  # [T, D] fp16, bf16 or fp32: patches
    p_w,  # [D, C] of x's dtype: weights without column means
    p_sum,  # [C] fp32: column sums of the weights, what rounding left of them
    p_kv,  # [T, C] of x's dtype: keys, then values
    p_mean,  # [T] fp32: mean of a patch
    p_rstd,  # [T] fp32: reciprocal of its deviation
    T,
    EPS,
    D: tl.constexpr,
    C: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Columns of the same patches side by side, so that these are read from memory once. The offset of a tile takes 64
    # bits, offsets within it 32.
    COLUMNS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    i_c = tl.program_id(0) % COLUMNS
    i_t = (tl.program_id(0) // COLUMNS).to(tl.int64) * BLOCK_T
    o_t = tl.arange(0, BLOCK_T)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    o_d = tl.arange(0, BLOCK_D)
    m_t = o_t < T - i_t
    m_c = o_c < C
    p_rows = p_x + i_t * D + o_t * D  # [BLOCK_T]
    b_kv = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    if NORM:
        # Sums of the distance from the first channel: it is within sqrt(D) deviations of the mean, so that the
        # variance, a difference of two such sums, loses few digits whatever the offset of the features.
        b_first = tl.load(p_rows, mask=m_t, other=0.0).to(tl.float32)
        b_far_sum = tl.zeros([BLOCK_T], tl.float32)
        b_square_sum = tl.zeros([BLOCK_T], tl.float32)
    for i_d in range(0, D, BLOCK_D):
        m_d = i_d + o_d < D
        p_tile = p_rows[:, None] + (i_d + o_d)[None, :]
        m_x = m_t[:, None]
        if D % BLOCK_D != 0:
            m_x = m_x & m_d[None, :]
        b_x = tl.load(p_tile, mask=m_x, other=0.0)
        p_weights = p_w + (i_d + o_d)[:, None] * C + o_c[None, :]
        if D % BLOCK_D == 0 and C % BLOCK_C == 0:
            b_w = tl.load(p_weights)
        else:
            b_w = tl.load(p_weights, mask=m_d[:, None] & m_c[None, :], other=0.0)
        b_kv = tl.dot(b_x, b_w, b_kv, input_precision=PRECISION)
        if NORM:
            # Read once more, out of the cache: b_x itself belongs to the product, see above.
            b_own = tl.load(p_tile, mask=m_x, other=0.0, eviction_policy="evict_first")
            b_far = b_own.to(tl.float32) - b_first[:, None]
            if D % BLOCK_D != 0:
                b_far = tl.where(m_d[None, :], b_far, 0.0)
            b_far_sum += tl.sum(b_far, 1)
            b_square_sum += tl.sum(b_far * b_far, 1)
    if NORM:
        b_far_mean = b_far_sum / D
        b_rstd = tl.rsqrt(tl.maximum(b_square_sum / D - b_far_mean * b_far_mean, 0.0) + EPS)
        b_mean = b_first + b_far_mean
        m_own = m_t & (i_c == 0)
        tl.store(p_mean + i_t + o_t, b_mean, mask=m_own)
        tl.store(p_rstd + i_t + o_t, b_rstd, mask=m_own)
        b_left = tl.load(p_sum + o_c, mask=m_c, other=0.0)
        b_kv = b_kv * b_rstd[:, None] - (b_mean * b_rstd)[:, None] * b_left[None, :]
    p_out = p_kv + i_t * C + o_t[:, None] * C + o_c[None, :]
    tl.store(p_out, b_kv.to(p_kv.dtype.element_ty), mask=m_t[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=["T"])
def features_kernel(
    p_g,  # [T, C] of x's dtype: rstd dKV
    p_w,  # [D, C] of x's dtype
    p_x,  # [T, D]
    p_mean,  # [T] fp32
    p_coef,  # [T] fp32: what layer norm takes off along x
    p_dx,  # [T, D] of x's dtype
    T,
    D: tl.constexpr,
    C: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    COLUMNS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    i_d = (tl.program_id(0) % COLUMNS) * BLOCK_D
    i_t = (tl.program_id(0) // COLUMNS).to(tl.int64) * BLOCK_T
    o_t = tl.arange(0, BLOCK_T)
    o_d = i_d + tl.arange(0, BLOCK_D)
    o_c = tl.arange(0, BLOCK_C)
    m_t = o_t < T - i_t
    m_d = o_d < D
    p_rows = p_g + i_t * C + o_t[:, None] * C
    b_dx = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for i_c in range(0, C, BLOCK_C):
        m_c = i_c + o_c < C
        m_g = m_t[:, None]
        if C % BLOCK_C != 0:
            m_g = m_g & m_c[None, :]
        b_g = tl.load(p_rows + (i_c + o_c)[None, :], mask=m_g, other=0.0)
        p_weights = p_w + o_d[:, None] * C + (i_c + o_c)[None, :]
        if D % BLOCK_D == 0 and C % BLOCK_C == 0:
            b_w = tl.load(p_weights)
        else:
            b_w = tl.load(p_weights, mask=m_d[:, None] & m_c[None, :], other=0.0)
        b_dx = tl.dot(b_g, tl.trans(b_w), b_dx, input_precision=PRECISION)
    o_out = i_t * D + o_t[:, None] * D + o_d[None, :]
    m_out = m_t[:, None] & m_d[None, :]
    if NORM:
        b_mean = tl.load(p_mean + i_t + o_t, mask=m_t, other=0.0)
        b_coef = tl.load(p_coef + i_t + o_t, mask=m_t, other=0.0)
        b_x = tl.load(p_x + o_out, mask=m_out, other=0.0).to(tl.float32)
        b_dx -= b_coef[:, None] * (b_x - b_mean[:, None])
    tl.store(p_dx + o_out, b_dx.to(p_dx.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["T", "STEPS"])
def weights_kernel(
    p_x,  # [T, D]
    p_g,  # [T, C] of x's dtype: rstd dKV
    p_part,  # [SPLITS, D, C] fp32
    T,
    STEPS,  # blocks of BLOCK_T patches of a split
    D: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    ROWS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    COLUMNS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    i = tl.program_id(0)
    i_s = i // (ROWS * COLUMNS)
    o_d = (i % ROWS) * BLOCK_D + tl.arange(0, BLOCK_D)
    o_c = (i // ROWS) % COLUMNS * BLOCK_C + tl.arange(0, BLOCK_C)
    o_t = tl.arange(0, BLOCK_T)
    m_d = o_d < D
    m_c = o_c < C
    i_start = i_s.to(tl.int64) * STEPS * BLOCK_T
    p_x_tile = p_x + i_start * D + o_t[:, None] * D + o_d[None, :]
    p_g_tile = p_g + i_start * C + o_t[:, None] * C + o_c[None, :]
    b_dw = tl.zeros([BLOCK_D, BLOCK_C], tl.float32)
    for i_step in range(STEPS):
        m_t = i_step * BLOCK_T + o_t < T - i_start
        b_x = tl.load(p_x_tile, mask=m_t[:, None] & m_d[None, :], other=0.0)
        b_g = tl.load(p_g_tile, mask=m_t[:, None] & m_c[None, :], other=0.0)
        p_x_tile += BLOCK_T * D
        p_g_tile += BLOCK_T * C
        b_dw = tl.dot(tl.trans(b_x), b_g, b_dw, input_precision=PRECISION)
    o_out = i_s * D * C + o_d[:, None] * C + o_c[None, :]
    tl.store(p_part + o_out, b_dw, mask=m_d[:, None] & m_c[None, :])


def project(x: Tensor, w: Tensor, eps: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of layer-normed features.

    Args:
        x: [B, N, D], contiguous.
        w: [D, C] of x's dtype, contiguous; without column means where eps is given.
        eps: of the layer norm; None: x is taken as it is.

    Returns:
        kv [B, N, C] of x's dtype; mean and rstd [B, N] in fp32, or [0] without layer norm.
    """
    (batch, patches, dim), columns, count = x.shape, w.shape[1], x.shape[0] * x.shape[1]
    kv = x.new_empty(batch, patches, columns)
    mean, rstd = (x.new_empty((batch, patches) if eps else 0, dtype=torch.float32) for _ in range(2))
    sums = w.float().sum(0) if eps else None

    def run(tile: Tile) -> tuple[Tensor, ...]:
        programs = blocks(count, tile.rows) * blocks(columns, tile.columns)
        project_kernel[(programs,)](
            *(x, w, sums, kv, mean, rstd, count, eps or 0.0),
            D=dim,
            C=columns,
            NORM=eps is not None,
            PRECISION=precision(x),
            BLOCK_T=tile.rows,
            BLOCK_C=tile.columns,
            BLOCK_D=tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return kv, mean, rstd

    sizes = {"rows": count, "columns": columns, "depth": dim}
    launch(Problem.of("project", x, sizes, f"{'with' if eps else 'no'} layer norm"), x.device, run)
    return kv, mean, rstd


def features_gradient(g: Tensor, w: Tensor, x: Tensor, mean: Tensor, coef: Tensor) -> Tensor:
    """dx [B, N, D] of x's dtype, from g [B, N, C] and coef [B, N] as `triton_attend` gives them."""
    (_, _, dim), columns, count = x.shape, w.shape[1], x.shape[0] * x.shape[1]
    dx = x.new_empty(x.shape)

    def run(tile: Tile) -> tuple[Tensor, ...]:
        features_kernel[(blocks(count, tile.rows) * blocks(dim, tile.columns),)](
            *(g, w, x, mean, coef, dx, count),
            D=dim,
            C=columns,
            NORM=mean.numel() > 0,
            PRECISION=precision(x),
            BLOCK_T=tile.rows,
            BLOCK_D=tile.columns,
            BLOCK_C=tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return (dx,)

    sizes = {"rows": count, "columns": dim, "depth": columns}
    launch(Problem.of("features", x, sizes, f"{'with' if mean.numel() else 'no'} layer norm"), x.device, run)
    return dx


def weights_gradient(x: Tensor, g: Tensor) -> Tensor:
    """dW = x^T g, [D, C] in fp32: parts of the patches side by side, and their sum. The same bits every time."""
    (_, _, dim), columns, count = x.shape, g.shape[2], x.shape[0] * x.shape[1]

    def run(tile: Tile) -> tuple[Tensor, ...]:
        tiles = blocks(dim, tile.rows) * blocks(columns, tile.columns)
        steps = blocks(count, tile.depth)
        steps = blocks(steps, max(1, processors(x) * max(1, 8 // tile.warps) // tiles))
        splits = blocks(count, tile.depth * steps)
        part = x.new_empty(splits, dim, columns, dtype=torch.float32)
        weights_kernel[(tiles * splits,)](
            *(x, g, part, count, steps),
            D=dim,
            C=columns,
            PRECISION=precision(x),
            BLOCK_D=tile.rows,
            BLOCK_C=tile.columns,
            BLOCK_T=tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return (part.sum(0) if splits > 1 else part[0],)

    sizes = {"rows": dim, "columns": columns, "depth": count}
    return launch(Problem.of("weights", x, sizes), x.device, run)[0]


def processors(tensor: Tensor) -> int:
    """How many programs the tensor's device runs side by side, at least; 2 under the interpreter."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 2


def precision(tensor: Tensor) -> str:
    """How products of fp32 are taken: as three of tf32, which keep fp32's digits. Has no meaning for 16 bits."""
    return "tf32x3" if tensor.dtype == torch.float32 else "ieee"

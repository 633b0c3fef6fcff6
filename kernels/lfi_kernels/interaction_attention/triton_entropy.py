"""sum T log T of every map: the part of the divergence that does not depend on the attention.

A pass of its own over the stored targets, which are a few hundredths of the bytes of X. Taken beside the scores, a
tile would have to hold more than its registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lfi_kernels.interaction_attention.triton_launch import alignment, pointer, strides
from lfi_kernels.interaction_attention.triton_tiles import BLOCK_M, aligned, curve, patch_mask, row_weights, top


@triton.jit
def entropy_kernel(
    p_target,  # [B, M, N] uint8 or floating
    p_weight,  # [B, M] floating, or None
    p_scale,  # [B, M] floating where the target is uint8, else None
    p_pad,  # [B, N] uint8, not 0 = ignore, or None
    p_h,  # [B, M] contiguous fp32: sum T log T, 0 for words of weight 0
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
    WORD_TILES,
    SQRT: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    i_program = tl.program_id(0)
    i_b = (i_program // WORD_TILES).to(tl.int64)
    o_m = (i_program % WORD_TILES) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_word = row_weights(p_weight, i_b, o_m, o_m < M, s_w_b, s_w_m) != 0.0
    p_sample = p_target + i_b * aligned(s_t_b, ALIGN)
    b_h = tl.zeros([BLOCK_M], dtype=tl.float32)
    for i_n in range(0, N, BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = patch_mask(p_pad, i_b, o_n, s_pad_b, s_pad_n, N, ALIGN)
        p_t = p_sample + (o_m[:, None] * aligned(s_t_m, ALIGN) + o_n[None, :] * s_t_n)
        b_t = tl.load(p_t, mask=m_word[:, None] & m_n[None, :], other=0).to(tl.float32)
        if p_scale is not None:
            b_scale = tl.load(p_scale + i_b * s_scale_b + o_m * s_scale_m, mask=m_word, other=0.0).to(tl.float32)
            b_t = curve(b_t, SQRT) * (b_scale / top(SQRT))[:, None]
        b_h += tl.sum(b_t * tl.log(tl.where(b_t == 0.0, 1.0, b_t)), 1)  # 0 log 0 = 0
    tl.store(p_h + i_b * M + o_m, b_h, mask=o_m < M)


def launch_entropy(
    target: Tensor,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    companding: str,
) -> Tensor:
    """sum_N T log T [B, M] in fp32; 0 for words of weight 0, whatever they hold."""
    batch, words, patches = target.shape
    entropy = torch.empty((batch, words), dtype=torch.float32, device=target.device)
    word_tiles = triton.cdiv(words, BLOCK_M.value)
    entropy_kernel[(batch * word_tiles,)](
        *(target, row_weight, target_scale, pointer(key_padding_mask), entropy),
        *(*target.stride(), *strides(row_weight, 2), *strides(target_scale, 2), *strides(key_padding_mask, 2)),
        *(words, patches, word_tiles),
        SQRT=companding == "sqrt",
        ALIGN=alignment(target),
        BLOCK_N=min(triton.next_power_of_2(patches), 256),
        num_warps=4,
    )
    return entropy

"""The op in eager PyTorch. This file is the specification that any faster version is held to.

Heads and words are folded into the rows of one matrix product per sample, [H*M, D] @ [D, N], and the target
is never expanded over the heads. The gradient is autograd's. The closed form of DESIGN.md, section 6, as a
custom Function took 0.96 to 1.05 of its time (one CPU thread, B=8, N=196, D=384 and 192, forward and
backward), which does not pay for stating the same maths twice.

Letters of the suffixes: B sample, H head, M word, R = H*M, N patch, D channel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_kernels.interaction_attention.inputs import (
    Companding,
    accumulation_dtype,
    check_inputs,
    check_scores_inputs,
    decode_target,
)


def interaction_attention(
    u: Tensor,
    x: Tensor,
    target: Tensor | None = None,
    row_weight: Tensor | None = None,
    *,
    target_scale: Tensor | None = None,
    companding: Companding = "sqrt",
    key_padding_mask: Tensor | None = None,
    layer_norm_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from folded queries to patches, and measure how far the attention is from a target map.

        S = u X^T    P = softmax_N(S)    z = P X
        kl = w (sum T log T - sum T S + (sum T) lse(S)) = w KL(T || P),    0 log 0 = 0

    The form of the loss is this project's choice (DESIGN.md, section 6); that of the paper (LFI, Gao et al.,
    ICCV 2025, arXiv 2509.18733) is not public.

    Args:
        u: [B, H, M, D], queries with W_q, W_k transposed and 1/sqrt(d) folded in; finite in every row.
        x: [B, N, D], patch tokens, of u's dtype; they serve as keys and as values.
        target: [B, M, N], one map per word, shared by the heads; uint8 codes or floating point. A constant:
            no gradient. Its rows are taken as they are, not normalised. None: kl is zeros.
        row_weight: [B, M], weight of each word; None: 1. Where it is 0, kl is exactly 0 and passes exactly no
            gradient, whatever that row of target and target_scale holds, NaN included. So too where a row of
            the target sums to 0.
        target_scale: [B, M], the value of code 255; for uint8 targets, and only for those.
        companding: the curve of uint8 codes, see `Companding`.
        key_padding_mask: [B, N], True = ignore: the patch gets no attention and no gradient, and what x and
            the target hold there is left out. A sample with every patch ignored gives z = 0 and kl = 0.
        layer_norm_eps: X = LN(x), layer norm over the channels without affine, with this eps; None: X = x.

    Returns:
        z [B, H, M, D] in u's dtype, and kl [B, H, M] in fp32 (fp64 for fp64 input), in nats. Scores, softmax
        and sums are held in kl's dtype, under autocast too.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    check_inputs(u, x, target, row_weight, target_scale, companding, key_padding_mask, layer_norm_eps)
    with torch.autocast(u.device.type, enabled=False):
        s_BRN, x_BND = masked_scores(u, x, key_padding_mask, layer_norm_eps)
        if target is None:
            p_BRN = s_BRN.softmax(-1)
            kl_BHM = s_BRN.new_zeros(u.shape[:3])
        else:
            t_BMN = decode_target(target, target_scale, companding, s_BRN.dtype)
            if key_padding_mask is not None:
                t_BMN = t_BMN.masked_fill(key_padding_mask[:, None], 0.0)
            if row_weight is not None:
                t_BMN = t_BMN.masked_fill((row_weight == 0)[..., None], 0.0)
            h_BM = torch.xlogy(t_BMN, t_BMN).sum(-1)
            if row_weight is not None:
                w_BM = row_weight.to(t_BMN.dtype)
                t_BMN, h_BM = w_BM[..., None] * t_BMN, w_BM * h_BM

            # log P = S - lse(S): taken as one number, the difference loses no digits to large scores.
            log_p_BRN = s_BRN.log_softmax(-1)
            p_BRN = log_p_BRN.exp()
            log_p_BHMN = log_p_BRN.view(*u.shape[:3], x.shape[1])
            kl_BHM = h_BM[:, None] - (t_BMN[:, None] * log_p_BHMN).sum(-1)
        z = torch.bmm(p_BRN, x_BND).view(u.shape).to(u.dtype)
    return z, kl_BHM


def attention_map(
    u: Tensor, x: Tensor, *, key_padding_mask: Tensor | None = None, layer_norm_eps: float | None = None
) -> Tensor:
    """Write out the map that `interaction_attention` never returns: P = softmax_N(u X^T).

    For evaluation and pictures. Arguments as there.

    Returns:
        [B, H, M, N] in fp32 (fp64 for fp64 input); rows sum to 1, or to 0 where every patch is ignored.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    check_scores_inputs(u, x, key_padding_mask, layer_norm_eps)
    with torch.autocast(u.device.type, enabled=False):
        p_BRN = masked_scores(u, x, key_padding_mask, layer_norm_eps)[0].softmax(-1)
    if key_padding_mask is not None:
        p_BRN = p_BRN.masked_fill(key_padding_mask[:, None], 0.0)
    return p_BRN.view(*u.shape[:3], x.shape[1])


def masked_scores(
    u: Tensor, x: Tensor, key_padding_mask: Tensor | None, layer_norm_eps: float | None
) -> tuple[Tensor, Tensor]:
    """S [B, R, N], and X [B, N, D] as the scores read it, both in the accumulation dtype.

    An ignored patch scores the lowest finite number, whose softmax is 0 beside any other patch, and is zero
    in X: so it may hold NaN, and a sample with every patch ignored has z = 0 with no NaN on the way. Zeros stay
    zeros in the layer norm.
    """
    dtype = accumulation_dtype(u.dtype)
    x_BND = x.to(dtype)
    if key_padding_mask is not None:
        x_BND = x_BND.masked_fill(key_padding_mask[..., None], 0.0)
    if layer_norm_eps is not None:
        x_BND = F.layer_norm(x_BND, x_BND.shape[-1:], eps=layer_norm_eps)
    s_BRN = torch.bmm(u.flatten(1, 2).to(dtype), x_BND.mT)
    if key_padding_mask is not None:
        s_BRN = s_BRN.masked_fill(key_padding_mask[:, None], torch.finfo(dtype).min)
    return s_BRN, x_BND

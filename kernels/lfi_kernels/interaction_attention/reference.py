"""The ops in eager PyTorch: the specification. The maths is in kernels/README.md.

Keys are folded into the queries, except in `projected_attention`, which is for many queries and what the kernels do.

Heads and queries are folded into the rows of one matrix product per sample, [H*M, D] @ [D, N], and a target is never
expanded over the heads. The gradient is autograd's: the closed form as a custom Function took 0.96 to 1.05 of its time
(one CPU thread, B=8, N=196, D=384 and 192, forward and backward).

Letters of the suffixes: B sample, H head, M query, K query without a map of its own, Q = H*M, R row of targets,
N patch, D channel.
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
    row_batch: Tensor | None = None,
    row_query: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from folded queries to patches, and measure how far the attention is from target maps.

        S = u X^T    P = softmax_N(S)    z = P X
        kl = w (sum T log T - sum T S + (sum T) lse(S)) = w KL(T || P),    0 log 0 = 0

    The form of the loss is this project's choice; that of the paper (LFI, Gao et al., ICCV 2025, arXiv 2509.18733)
    was not known to us when this was written.

    Maps come dense, one for every query, or as R rows that name their sample and query, where few queries have one.
    No map is read and no divergence computed for the other queries then.

    Args:
        u: [B, H, M, D], queries with W_q, W_k transposed and the scale of scores folded in; finite in every row.
        x: [B, N, D], patch tokens, of u's dtype; they serve as keys and as values.
        target: [B, M, N], one map per query, shared by the heads, or [R, N]; uint8 codes or floating point. A
            constant: no gradient. Its rows are taken as they are, not normalised. None: kl is zeros.
        row_weight: [B, M] or [R], weight of each map; None: 1. Where it is 0, kl is exactly 0 and passes exactly no
            gradient, whatever that row of target and target_scale holds, NaN included. So too where a row of
            the target sums to 0.
        target_scale: [B, M] or [R], the value of code 255; for uint8 targets, and only for those.
        companding: the curve of uint8 codes, see `Companding`.
        key_padding_mask: [B, N], True = ignore: the patch gets no attention and no gradient, and what x and
            the target hold there is left out. A sample with every patch ignored gives z = 0 and kl = 0.
        layer_norm_eps: X = LN(x), layer norm over the channels without affine, with this eps; None: X = x.
        row_batch, row_query: [R] int64 or int32, sample and query of each row of the target; row_batch must not
            decrease, and no pair may occur twice. None: the target is dense.

    Returns:
        z [B, H, M, D] in u's dtype, and kl [B, H, M], or [R, H] for rows, in fp32 (fp64 for fp64 input), in nats.
        Scores, softmax and sums are held in kl's dtype, under autocast too.

    Raises:
        ValueError: a shape, dtype or device that does not fit; rows that are out of range, out of order or named twice
            (on the CPU; on a GPU values are not looked at, and of two rows for one query the kernels take one).
    """
    check_inputs(
        *(u, x, target, row_weight, target_scale, companding, key_padding_mask, layer_norm_eps),
        row_batch=row_batch,
        row_query=row_query,
    )
    with torch.autocast(u.device.type, enabled=False):
        s_BQN, x_BND = masked_scores(u, x, key_padding_mask, layer_norm_eps)
        if target is None:
            p_BQN = s_BQN.softmax(-1)
            kl = s_BQN.new_zeros(u.shape[:3])
        elif row_batch is not None and row_query is not None:
            p_BQN = s_BQN.softmax(-1)
            s_RHN = s_BQN.view(*u.shape[:3], x.shape[1])[row_batch, :, row_query]
            ignored_RN = None if key_padding_mask is None else key_padding_mask[row_batch]
            t_RN, h_R = _weighted_maps(target, row_weight, target_scale, companding, ignored_RN, s_BQN.dtype)
            kl = h_R[:, None] - (t_RN[:, None] * s_RHN.log_softmax(-1)).sum(-1)
        else:
            ignored_B1N = None if key_padding_mask is None else key_padding_mask[:, None]
            t_BMN, h_BM = _weighted_maps(target, row_weight, target_scale, companding, ignored_B1N, s_BQN.dtype)
            # log P = S - lse(S): taken as one number, the difference loses no digits to large scores.
            log_p_BQN = s_BQN.log_softmax(-1)
            p_BQN = log_p_BQN.exp()
            kl = h_BM[:, None] - (t_BMN[:, None] * log_p_BQN.view(*u.shape[:3], x.shape[1])).sum(-1)
        z = torch.bmm(p_BQN, x_BND).view(u.shape).to(u.dtype)
    return z, kl


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
        p_BQN = masked_scores(u, x, key_padding_mask, layer_norm_eps)[0].softmax(-1)
    if key_padding_mask is not None:
        p_BQN = p_BQN.masked_fill(key_padding_mask[:, None], 0.0)
    return p_BQN.view(*u.shape[:3], x.shape[1])


def projected_attention(
    q: Tensor,
    x: Tensor,
    w: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    key_padding_mask: Tensor | None,
    row_batch: Tensor | None,
    row_query: Tensor | None,
    heads: int,
    companding: Companding,
    layer_norm_eps: float | None,
) -> tuple[Tensor, Tensor]:
    """The same maths without folding, as the fused kernels compute it: o [B, M, Dq] and kl [R, H].

        [K | V] = X w    S_h = q_h K_h^T    P_h = softmax_N(S_h)    o = concat_h(P_h V_h)

    Arguments as in `dispatch.projected_attention`; kl is [0, H] without a target, and [B*M, H] where maps are dense.
    """
    dtype = accumulation_dtype(q.dtype)
    with torch.autocast(q.device.type, enabled=False):
        x = x.to(dtype)
        if key_padding_mask is not None:
            x = x.masked_fill(key_padding_mask[..., None], 0.0)
        if layer_norm_eps is not None:
            x = F.layer_norm(x, x.shape[-1:], eps=layer_norm_eps)
        k, v = torch.chunk(x @ w.to(dtype), 2, -1)
        q_BHMd, k_BHNd, v_BHNd = (
            each.reshape(*each.shape[:2], heads, each.shape[2] // heads).transpose(1, 2) for each in (q.to(dtype), k, v)
        )
        s_BHMN = q_BHMd @ k_BHNd.mT
        if key_padding_mask is not None:
            s_BHMN = s_BHMN.masked_fill(key_padding_mask[:, None, None], torch.finfo(dtype).min)
        ignored = key_padding_mask
        if target is not None and row_batch is None:
            log_p_BHMN = s_BHMN.log_softmax(-1)
            p_BHMN, log_p_RHN = log_p_BHMN.exp(), log_p_BHMN.transpose(1, 2).flatten(0, 1)
            ignored = None if ignored is None else ignored.repeat_interleave(q.shape[1], 0)
            target = target.flatten(0, 1)
            row_weight, target_scale = (None if each is None else each.flatten() for each in (row_weight, target_scale))
        else:
            p_BHMN = s_BHMN.softmax(-1)
            if row_batch is not None and row_query is not None:
                log_p_RHN = s_BHMN[row_batch, :, row_query].log_softmax(-1)
                ignored = None if ignored is None else ignored[row_batch]
        o = (p_BHMN @ v_BHNd).transpose(1, 2).flatten(2).to(q.dtype)
        if target is None:
            return o, s_BHMN.new_zeros(0, heads)
        t_RN, h_R = _weighted_maps(target, row_weight, target_scale, companding, ignored, dtype)
        return o, h_R[:, None] - (t_RN[:, None] * log_p_RHN).sum(-1)


def masked_scores(
    u: Tensor, x: Tensor, key_padding_mask: Tensor | None, layer_norm_eps: float | None
) -> tuple[Tensor, Tensor]:
    """S [B, Q, N], and X [B, N, D] as the scores read it, both in the accumulation dtype.

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
    s_BQN = torch.bmm(u.flatten(1, 2).to(dtype), x_BND.mT)
    if key_padding_mask is not None:
        s_BQN = s_BQN.masked_fill(key_padding_mask[:, None], torch.finfo(dtype).min)
    return s_BQN, x_BND


def _weighted_maps(
    target: Tensor,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    companding: Companding,
    ignored: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """w T [..., N] and w sum T log T [...]; zeros where the weight is 0 or a patch is ignored, whatever is stored."""
    maps = decode_target(target, target_scale, companding, dtype)
    if ignored is not None:
        maps = maps.masked_fill(ignored, 0.0)
    if row_weight is not None:
        maps = maps.masked_fill((row_weight == 0)[..., None], 0.0)
    entropy = torch.xlogy(maps, maps).sum(-1)
    if row_weight is None:
        return maps, entropy
    weight = row_weight.to(dtype)
    return weight[..., None] * maps, weight * entropy

"""The divergence of every query from every map, for queries that belong to no word yet.

`interaction_attention` compares query m with map m. Here K queries meet M maps, and the pairs [B, K, M] are what
a matching needs (DESIGN.md, section 6). Eager PyTorch in every place: the pairs cost one product over the patches,
[M, N] @ [N, K] per sample, and nothing of size K * M * N is written.

Letters of the suffixes: B sample, H head, K query, M word, R = H*K, N patch, D channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lfi_kernels.interaction_attention.inputs import Companding, check_inputs, decode_target
from lfi_kernels.interaction_attention.reference import masked_scores


def interaction_costs(
    u: Tensor,
    x: Tensor,
    target: Tensor,
    row_weight: Tensor | None = None,
    *,
    target_scale: Tensor | None = None,
    companding: Companding = "sqrt",
    key_padding_mask: Tensor | None = None,
    layer_norm_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from folded queries to patches, and measure how far every query's attention is from every map.

        S = u X^T    P = softmax_N(S)    z = P X
        cost_km = w_m mean_h (sum T_m log T_m - T_m . S_hk + (sum T_m) lse(S_hk)) = w_m mean_h KL(T_m || P_hk)

    The mean over the heads is taken of log P before it meets the maps, so the heads cost nothing here; and log P
    is taken as one number, S - lse(S), so that large scores cost no digits.

    Args:
        u: [B, H, K, D] and x [B, N, D]: as in `interaction_attention`.
        target: [B, M, N]; M need not be K. With it row_weight [B, M], target_scale [B, M], companding,
            key_padding_mask [B, N] and layer_norm_eps: as there. Where a word's weight or its map is 0, its whole
            column is exactly 0 and passes exactly no gradient.

    Returns:
        z [B, H, K, D] in u's dtype, and cost [B, K, M] in fp32 (fp64 for fp64 input), in nats.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    words = target.shape[1] if target.ndim == 3 else 0
    check_inputs(u, x, target, row_weight, target_scale, companding, key_padding_mask, layer_norm_eps, words=words)
    with torch.autocast(u.device.type, enabled=False):
        s_BRN, x_BND = masked_scores(u, x, key_padding_mask, layer_norm_eps)
        log_p_BRN = s_BRN.log_softmax(-1)
        z = torch.bmm(log_p_BRN.exp(), x_BND).view(u.shape).to(u.dtype)

        t_BMN = decode_target(target, target_scale, companding, s_BRN.dtype)
        if key_padding_mask is not None:
            t_BMN = t_BMN.masked_fill(key_padding_mask[:, None], 0.0)
            # An ignored patch has log P near the lowest number there is: the mean over heads would overflow.
            log_p_BRN = log_p_BRN.masked_fill(key_padding_mask[:, None], 0.0)
        if row_weight is not None:
            t_BMN = t_BMN.masked_fill((row_weight == 0)[..., None], 0.0)
        h_BM = torch.xlogy(t_BMN, t_BMN).sum(-1)
        if row_weight is not None:
            w_BM = row_weight.to(t_BMN.dtype)
            t_BMN, h_BM = w_BM[..., None] * t_BMN, w_BM * h_BM
        log_p_BKN = log_p_BRN.view(*u.shape[:3], x.shape[1]).mean(1)
        cost_BKM = h_BM[:, None] - torch.bmm(log_p_BKN, t_BMN.mT)
    return z, cost_BKM

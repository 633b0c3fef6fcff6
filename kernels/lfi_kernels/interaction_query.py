"""One tap of a student: queries look at the patches, and learn where they should have looked."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_kernels.interaction_attention import Companding, attention_map, interaction_attention, interaction_costs

LAYER_NORM_EPS = 1e-5


class InteractionQueryBlock(nn.Module):
    """Cross-attention from queries to patch tokens that also returns its divergence from target maps.

    For tap t, with X = LN(features) and both layer norms without affine (DESIGN.md, section 5):

        S   = (LN(Q) W_q)_h (W_k)_h^T X^T / sqrt(d)       P = softmax over patches(S)
        Q'  = Q + concat_h(P_h X (W_v)_h) W_o             kl = w KL(T || P_h)

    The key projection is folded into the query, u = LN(Q) W_q,h W_k,h^T / sqrt(d) (section 6), so that scores
    and values both read X itself: K and V are never built. The layer norm of the features is left to the op, whose
    fused kernels never write X either.

    These equations, the number of queries and the form of the loss are this project's choice: those of the
    paper (LFI, Gao et al., ICCV 2025, arXiv 2509.18733) are not public.

    Args:
        query_dim: Dq, width of a query; the heads share it, d = Dq / heads.
        feature_dim: D, width of a patch token at this tap.
        heads: H.

    Raises:
        ValueError: a size below 1, or heads that do not divide query_dim.
    """

    def __init__(self, query_dim: int, feature_dim: int, heads: int) -> None:
        super().__init__()
        for name, size in (("query_dim", query_dim), ("feature_dim", feature_dim), ("heads", heads)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        if query_dim % heads:
            raise ValueError(f"query_dim must be divisible by heads, got {query_dim} and {heads}.")
        self.query_dim = query_dim
        self.feature_dim = feature_dim
        self.heads = heads
        # Each as it stands in the equations: rows times matrix, [in, H * d].
        self.w_q = nn.Parameter(torch.empty(query_dim, query_dim))
        self.w_k = nn.Parameter(torch.empty(feature_dim, query_dim))
        self.w_v = nn.Parameter(torch.empty(feature_dim, query_dim))
        self.w_o = nn.Parameter(torch.empty(query_dim, query_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for W_q, W_k and W_v: scores start with a variance near 1, maps near uniform.

        W_o starts at zero: the block begins as the identity on the state, every tap is first supervised on
        the seed itself, and patches enter the state only as fast as training asks for them. Its own gradient
        is not zero, so W_o moves at the first step and W_v follows at the second.
        """
        for weight in (self.w_q, self.w_k, self.w_v):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.w_o)

    def extra_repr(self) -> str:
        return f"query_dim={self.query_dim}, feature_dim={self.feature_dim}, heads={self.heads}"

    def forward(
        self,
        queries: Tensor,
        features: Tensor,
        target: Tensor | None = None,
        row_weight: Tensor | None = None,
        target_scale: Tensor | None = None,
        companding: Companding = "sqrt",
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Update the queries from the patches.

        Args:
            queries: [B, M, Dq], the state.
            features: [B, N, D], patch tokens as the backbone gives them; normalised here.
            target: [B, M, N], and with it row_weight [B, M], target_scale [B, M], companding and
                key_padding_mask [B, N]: as in `interaction_attention`.

        Returns:
            The new queries [B, M, Dq], and kl [B, H, M] in nats, times row_weight (zeros without a target).

        Raises:
            ValueError: a shape, dtype or device that does not fit.
        """
        told = target, row_weight, target_scale, companding, key_padding_mask
        return self._answer(interaction_attention, queries, features, *told)

    def costs(
        self,
        queries: Tensor,
        features: Tensor,
        target: Tensor,
        row_weight: Tensor | None = None,
        target_scale: Tensor | None = None,
        companding: Companding = "sqrt",
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Update queries that belong to no word yet, and compare each of them with every word's map.

        Args:
            queries: [B, K, Dq], the state.
            features: [B, N, D], as in `forward`.
            target: [B, M, N], and with it the further arguments: as in `interaction_costs`.

        Returns:
            The new queries [B, K, Dq], the same as `forward` gives, and cost [B, K, M]: the mean over heads of
            KL(T_m || P_k) in nats, times row_weight.

        Raises:
            ValueError: a shape, dtype or device that does not fit.
        """
        told = target, row_weight, target_scale, companding, key_padding_mask
        return self._answer(interaction_costs, queries, features, *told)

    def attention(self, queries: Tensor, features: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Write out P [B, H, M, N], which `forward` compares with the target; for evaluation and pictures."""
        u, x, eps = self._fold_keys(queries, features)
        return attention_map(u, x, key_padding_mask=key_padding_mask, layer_norm_eps=eps)

    def _answer(
        self,
        op: Callable[..., tuple[Tensor, Tensor]],
        queries: Tensor,
        features: Tensor,
        target: Tensor | None,
        row_weight: Tensor | None,
        target_scale: Tensor | None,
        companding: Companding,
        key_padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The new queries, and what `op` says of their maps."""
        u, x, eps = self._fold_keys(queries, features)
        z, divergence = op(
            u,
            x,
            target,
            row_weight,
            target_scale=target_scale,
            companding=companding,
            key_padding_mask=key_padding_mask,
            layer_norm_eps=eps,
        )
        return queries + self._values(z), divergence

    def _fold_keys(self, queries: Tensor, features: Tensor) -> tuple[Tensor, Tensor, float | None]:
        """u [B, H, M, D] and x [B, N, D] of one dtype, and the eps of the layer norm that x still needs, if any.

        Autocast makes u narrower than features may be. To bf16 they are rounded as they are, and normalised by the op;
        fp16 may not hold what they were before the layer norm, so there it comes first.
        """
        if queries.ndim != 3 or queries.shape[2] != self.query_dim:
            raise ValueError(f"queries must be [B, M, Dq] with Dq={self.query_dim}, got shape {list(queries.shape)}.")
        if features.ndim != 3 or features.shape[2] != self.feature_dim:
            raise ValueError(f"features must be [B, N, D] with D={self.feature_dim}, got shape {list(features.shape)}.")
        q = (
            F.layer_norm(queries, (self.query_dim,), eps=LAYER_NORM_EPS)
            @ self.w_q
            * (1 / math.sqrt(self.query_dim // self.heads))
        )
        # [H, B*M, d] @ [H, d, D] -> [H, B*M, D] -> [B, H, M, D]
        batch, words, _ = queries.shape
        q_heads = q.view(batch * words, self.heads, -1).transpose(0, 1)
        u = torch.bmm(q_heads, self._per_head(self.w_k).mT).view(self.heads, batch, words, self.feature_dim)
        eps: float | None = LAYER_NORM_EPS
        if u.dtype == torch.float16 and features.dtype != torch.float16:
            features, eps = F.layer_norm(features, (self.feature_dim,), eps=LAYER_NORM_EPS), None
        return u.transpose(0, 1), features.to(u.dtype), eps

    def _values(self, z: Tensor) -> Tensor:
        """What patches add to the state: z [B, H, M, D] -> concat_h(z_h (W_v)_h) W_o, [B, M, Dq]."""
        batch, _, rows, _ = z.shape
        # [H, B*M, D] @ [H, D, d] -> [H, B*M, d] -> [B, M, H*d]
        values = torch.bmm(z.transpose(0, 1).flatten(1, 2), self._per_head(self.w_v))
        return values.transpose(0, 1).reshape(batch, rows, self.query_dim) @ self.w_o

    def _per_head(self, weight: Tensor) -> Tensor:
        """[D, H*d] -> [H, D, d]."""
        return weight.view(weight.shape[0], self.heads, -1).transpose(0, 1)

"""One tap of a student: queries look at the patches, and learn where they should have looked."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lfi_kernels.interaction_attention import Companding, attention_map, interaction_attention, reference
from lfi_kernels.interaction_attention.dispatch import projected_attention, resolve
from lfi_kernels.interaction_attention.inputs import FLOAT_DTYPES, check_mask, check_rows, check_targets

LAYER_NORM_EPS = 1e-5

NUMBERS_AT_ONCE = 2**26
"""Scores [B, H, M, N], or numbers of u [B, H, M, D], that are in memory at once; more queries are taken in blocks."""


class InteractionQueryBlock(nn.Module):
    """Cross-attention from queries to patch tokens that also returns its divergence from target maps.

    For tap t, with X = LN(features) and both layer norms without affine (kernels/README.md):

        S   = scale (LN(Q) W_q)_h (W_k)_h^T X^T           P = softmax over patches(S)
        Q'  = Q + concat_h(P_h X (W_v)_h) W_o             kl = w KL(T || P_h)

    On the CPU the key projection of few queries is folded into them, u = scale LN(Q) W_q,h W_k,h^T, so that scores
    and values both read X itself: K and V are never built (see `folds`). Queries do not see each other, so many of them
    are taken in blocks, whose scores are computed anew for the gradient: the results are the same, and memory does not
    grow with M * N. On a GPU the fused kernels project keys and values first, and never write a map.

    These equations, the number of queries and the form of the loss are this project's choice: those of the paper
    (LFI, Gao et al., ICCV 2025, arXiv 2509.18733) were not known to us when this was written.

    Args:
        query_dim: Dq, width of a query; the heads share it, d = Dq / heads.
        feature_dim: D, width of a patch token at this tap.
        heads: H.
        scale: of the scores; None: d ** -0.5, as in `torch.nn.functional.scaled_dot_product_attention`.

    Raises:
        ValueError: a size below 1, heads that do not divide query_dim, or a scale that is not positive and finite.
    """

    def __init__(self, query_dim: int, feature_dim: int, heads: int, *, scale: float | None = None) -> None:
        super().__init__()
        for name, size in (("query_dim", query_dim), ("feature_dim", feature_dim), ("heads", heads)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        if query_dim % heads:
            raise ValueError(f"query_dim must be divisible by heads, got {query_dim} and {heads}.")
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}.")
        self.query_dim = query_dim
        self.feature_dim = feature_dim
        self.heads = heads
        self.scale = (query_dim // heads) ** -0.5 if scale is None else scale
        # Each as it stands in the equations: rows times matrix, [in, H * d].
        self.w_q = nn.Parameter(torch.empty(query_dim, query_dim))
        self.w_k = nn.Parameter(torch.empty(feature_dim, query_dim))
        self.w_v = nn.Parameter(torch.empty(feature_dim, query_dim))
        self.w_o = nn.Parameter(torch.empty(query_dim, query_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for W_q, W_k and W_v: unless `scale` says otherwise scores start with a variance near 1, maps near uniform.

        W_o starts at zero: the block begins as the identity on the state, every tap is first supervised on
        the seed itself, and patches enter the state only as fast as training asks for them. Its own gradient
        is not zero, so W_o moves at the first step and W_v follows at the second.
        """
        for weight in (self.w_q, self.w_k, self.w_v):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.w_o)

    def extra_repr(self) -> str:
        return f"query_dim={self.query_dim}, feature_dim={self.feature_dim}, heads={self.heads}, scale={self.scale:.4g}"

    def forward(
        self,
        queries: Tensor,
        features: Tensor,
        target: Tensor | None = None,
        row_weight: Tensor | None = None,
        target_scale: Tensor | None = None,
        companding: Companding = "sqrt",
        key_padding_mask: Tensor | None = None,
        *,
        row_batch: Tensor | None = None,
        row_query: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Update the queries from the patches.

        Args:
            queries: [B, M, Dq], the state; or [1, M, Dq], the same for every sample.
            features: [B, N, D], patch tokens as the backbone gives them; normalised here.
            target: [B, M, N], one map for every query, or [R, N] with row_batch and row_query [R], for the few queries
                that have one; with it row_weight and target_scale ([B, M] or [R]), companding and
                key_padding_mask [B, N]: as in `interaction_attention`.

        Returns:
            The new queries [B, M, Dq], and kl in nats, times row_weight: [B, H, M] (zeros without a target), or [R, H].

        Raises:
            ValueError: a shape, dtype or device that does not fit, or rows that do not (see `interaction_attention`).
        """
        self._check(queries, features, key_padding_mask)
        targets = target, row_weight, target_scale
        batch, (words, patches) = features.shape[0], (queries.shape[1], features.shape[1])
        check_targets(features.device, (batch, words), patches, *targets, companding, row_batch, row_query)
        if self.is_fused(queries):
            op = projected_attention
            return self._projected(op, queries, features, *targets, companding, key_padding_mask, row_batch, row_query)
        # An exported graph serves every batch size: it takes all queries at once.
        step = words if torch.compiler.is_exporting() else self._queries_at_once(features)
        if words <= step:
            return self._answer(queries, features, *targets, companding, key_padding_mask, row_batch, row_query)
        states, divergences, orders = [], [], []
        for start in range(0, words, step):
            some = queries[:, start : start + step]
            if target is None or row_batch is None or row_query is None:
                part = [None if each is None else each[:, start : start + step] for each in targets]
                rows: tuple[Tensor | None, Tensor | None] = None, None
            else:
                order = ((row_query >= start) & (row_query < start + step)).nonzero()[:, 0]
                part = [None if each is None else each[order] for each in targets]
                rows = row_batch[order], row_query[order] - start
                orders.append(order)
            arguments = some, features, *part, companding, key_padding_mask, *rows
            state, kl = checkpoint(self._answer, *arguments, use_reentrant=False, preserve_rng_state=False)
            states.append(state)
            divergences.append(kl)
        kl = torch.cat(divergences)[torch.cat(orders).argsort()] if orders else torch.cat(divergences, 2)
        return torch.cat(states, 1), kl

    def is_fused(self, queries: Tensor) -> bool:
        """Whether the fused kernels compute `forward` for such queries, on their device and under the current autocast."""
        return resolve(queries.device, _computed_in(queries)) == "triton"

    def attention(
        self,
        queries: Tensor,
        features: Tensor,
        key_padding_mask: Tensor | None = None,
        *,
        row_batch: Tensor | None = None,
        row_query: Tensor | None = None,
    ) -> Tensor:
        """Write out P, which `forward` compares with the target; for evaluation and pictures.

        Args:
            queries, features, key_padding_mask: as in `forward`.
            row_batch, row_query: [R], sample and query of the maps that are wanted; the others are not computed.
                None: all. Rows may come in any order here, and more than once.

        Returns:
            [B, H, M, N], or [R, H, N] for rows.

        Raises:
            ValueError: a shape, dtype or device that does not fit.
        """
        self._check(queries, features, key_padding_mask)
        if row_batch is None and row_query is None:
            u, x, eps = self._fold_keys(queries, features)
            return attention_map(u, x, key_padding_mask=key_padding_mask, layer_norm_eps=eps)
        size = features.shape[0], queries.shape[1]
        check_rows(features.device, size, row_batch, row_query, ordered=False)
        assert row_batch is not None
        assert row_query is not None
        # A row is a sample with one query; so many at a time that their patches take no more memory than scores may.
        step = max(1, NUMBERS_AT_ONCE // features[0].numel())
        queries = queries.expand(size[0], -1, -1)
        maps = []
        for index, query in zip(torch.split(row_batch, step), torch.split(row_query, step), strict=True):
            u, x, eps = self._fold_keys(queries[index, query][:, None], features[index])
            ignored = None if key_padding_mask is None else key_padding_mask[index]
            maps.append(attention_map(u, x, key_padding_mask=ignored, layer_norm_eps=eps)[:, :, 0])
        return torch.cat(maps)

    def _answer(
        self,
        queries: Tensor,
        features: Tensor,
        target: Tensor | None,
        row_weight: Tensor | None,
        target_scale: Tensor | None,
        companding: Companding,
        key_padding_mask: Tensor | None,
        row_batch: Tensor | None,
        row_query: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the new queries [B, M, Dq] and kl as `forward` does, of all these queries at once."""
        if not folds(queries.shape[1], features.shape[1], self.feature_dim, self.query_dim, self.heads):
            arguments = target, row_weight, target_scale, companding, key_padding_mask, row_batch, row_query
            return self._projected(reference.projected_attention, queries, features, *arguments)
        u, x, eps = self._fold_keys(queries, features)
        z, kl = interaction_attention(
            *(u, x, target, row_weight),
            target_scale=target_scale,
            companding=companding,
            key_padding_mask=key_padding_mask,
            layer_norm_eps=eps,
            row_batch=row_batch,
            row_query=row_query,
        )
        return queries + self._values(z), kl

    def _projected(
        self,
        op: Callable[..., tuple[Tensor, ...]],
        queries: Tensor,
        features: Tensor,
        target: Tensor | None,
        row_weight: Tensor | None,
        target_scale: Tensor | None,
        companding: Companding,
        key_padding_mask: Tensor | None,
        row_batch: Tensor | None,
        row_query: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return what `_answer` does, from projected keys and values; `op` is a `projected_attention`."""
        q = self._scaled_queries(queries)
        x, eps = self._readable(features, q.dtype)
        w = torch.cat([self.w_k, self.w_v], 1)
        w = w.to(torch.promote_types(w.dtype, torch.float32))
        if eps is not None:
            w = w - w.mean(0)  # LN(x) W = rstd (x W') then: no mean is left
        o, kl, *_ = op(
            *(q.expand(x.shape[0], -1, -1), x, w, target, row_weight, target_scale, key_padding_mask),
            *(row_batch, row_query, self.heads, companding, eps),
        )
        states = queries + o @ self.w_o
        if target is None:
            return states, kl.new_zeros(o.shape[0], self.heads, o.shape[1])
        return states, kl if row_batch is not None else kl.view(*o.shape[:2], self.heads).transpose(1, 2)

    def _queries_at_once(self, features: Tensor) -> int:
        """Return how many queries are taken at once, 1 or more, to keep scores and u within NUMBERS_AT_ONCE."""
        batch, patches, dim = features.shape
        return max(1, NUMBERS_AT_ONCE // max(1, batch * self.heads * max(patches, dim)))

    def _check(self, queries: Tensor, features: Tensor, key_padding_mask: Tensor | None) -> None:
        if queries.ndim != 3 or queries.shape[2] != self.query_dim:
            raise ValueError(f"queries must be [B, M, Dq] with Dq={self.query_dim}, got shape {list(queries.shape)}.")
        if features.ndim != 3 or features.shape[2] != self.feature_dim:
            raise ValueError(f"features must be [B, N, D] with D={self.feature_dim}, got shape {list(features.shape)}.")
        if features.shape[1] == 0:
            raise ValueError(f"features must hold at least one patch, got shape {list(features.shape)}.")
        for name, tensor in (("queries", queries), ("features", features)):
            if tensor.dtype not in FLOAT_DTYPES:
                raise ValueError(f"{name} must be floating point, got {tensor.dtype}.")
            if tensor.device != self.w_q.device:
                raise ValueError(f"{name} must be on {self.w_q.device} as the block is, got some on {tensor.device}.")
        check_mask(features.device, (features.shape[0], features.shape[1]), key_padding_mask)
        if queries.shape[0] not in (1, features.shape[0]):
            raise ValueError(
                f"features must be [B, N, D] with B={queries.shape[0]} as in queries, got shape {list(features.shape)}."
            )

    def _scaled_queries(self, queries: Tensor) -> Tensor:
        """q = scale LN(Q) W_q, of the shape of the queries."""
        return F.layer_norm(queries, (self.query_dim,), eps=LAYER_NORM_EPS) @ self.w_q * self.scale

    def _readable(self, features: Tensor, dtype: torch.dtype) -> tuple[Tensor, float | None]:
        """The features in `dtype`, and the eps of the layer norm that they still need, if any.

        Autocast makes queries narrower than features may be. To bf16 these are rounded as they are, and normalised
        later; fp16 may not hold what they were before the layer norm, so there it comes first.
        """
        if dtype == torch.float16 and features.dtype != torch.float16:
            return F.layer_norm(features, (self.feature_dim,), eps=LAYER_NORM_EPS).to(dtype), None
        return features.to(dtype), LAYER_NORM_EPS

    def _fold_keys(self, queries: Tensor, features: Tensor) -> tuple[Tensor, Tensor, float | None]:
        """u [B, H, M, D] and x [B, N, D] of one dtype, and the eps of the layer norm that x still needs, if any."""
        # [H, B*M, d] @ [H, d, D] -> [H, B*M, D] -> [B, H, M, D]
        batch, words, _ = queries.shape
        width = self.query_dim // self.heads
        q_heads = self._scaled_queries(queries).view(batch * words, self.heads, width).transpose(0, 1)
        u = torch.bmm(q_heads, self._per_head(self.w_k).mT).view(self.heads, batch, words, self.feature_dim)
        return u.transpose(0, 1).expand(features.shape[0], -1, -1, -1), *self._readable(features, u.dtype)

    def _values(self, z: Tensor) -> Tensor:
        """What patches add to the state: z [B, H, M, D] -> concat_h(z_h (W_v)_h) W_o, [B, M, Dq]."""
        batch, _, rows, _ = z.shape
        # [H, B*M, D] @ [H, D, d] -> [H, B*M, d] -> [B, M, H*d]
        values = torch.bmm(z.transpose(0, 1).flatten(1, 2), self._per_head(self.w_v))
        return values.transpose(0, 1).reshape(batch, rows, self.query_dim) @ self.w_o

    def _per_head(self, weight: Tensor) -> Tensor:
        """[D, H*d] -> [H, D, d]."""
        return weight.view(weight.shape[0], self.heads, -1).transpose(0, 1)


def folds(words: int, patches: int, feature_dim: int, query_dim: int, heads: int) -> bool:
    """Whether folding keys into queries takes fewer operations than keys and values: where there are few queries."""
    folded = words * feature_dim * (query_dim + heads * patches)
    return folded <= patches * query_dim * (feature_dim + words)


def _computed_in(queries: Tensor) -> torch.dtype:
    """Return the dtype of products of the queries: autocast narrows all but float64."""
    kind = queries.device.type
    if torch.is_autocast_enabled(kind) and queries.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return queries.dtype

"""The block on a GPU: project keys and values, attend, and both backward, from the kernels in their order.

Tensors come checked by the block. Letters: B sample, M query, H head, d = Dq/H, N patch, D channel, R map.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lfi_kernels.interaction_attention.tiles import Problem, Tile, blocks, launch, power_of_two
from lfi_kernels.interaction_attention.triton_attend import forward_kernel, keys_kernel, queries_kernel
from lfi_kernels.interaction_attention.triton_project import features_gradient, precision, project, weights_gradient


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """How the attention kernels put queries and heads into the rows of a program.

    Attributes:
        heads: HP, side by side in a program; they divide all heads.
        words: W, queries of a program.
        block_rows, block_columns, block_words: the powers of two that hold them, as a product needs them.
        stages: of the tile; 1 where rows and columns are fewer than the matrix units of sm_90 take, so that some
            products read registers and others shared memory: no tile may be copied ahead for both.
    """

    heads: int
    words: int
    block_rows: int
    block_columns: int
    block_words: int
    stages: int

    @classmethod
    def of(cls, tile: Tile, heads: int, words: int, width: int, least_rows: int) -> Rows:
        """Choose as many queries as the tile takes, and as many heads beside each other as fit."""
        of_words = min(power_of_two(words), tile.rows)
        fitting = (n for n in range(heads, 0, -1) if heads % n == 0 and n & (n - 1) == 0)
        of_heads = next((n for n in fitting if n * of_words <= tile.rows and n * width <= tile.columns), 1)
        block_rows, block_columns = max(least_rows, of_heads * of_words), max(16, power_of_two(of_heads * width))
        return cls(
            heads=of_heads,
            words=of_words,
            block_rows=block_rows,
            block_columns=block_columns,
            block_words=max(16, of_words),
            stages=tile.stages if max(block_rows, block_columns) >= 64 else 1,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Maps:
    """The target maps of the queries, with their weights and scales, as the kernels take them.

    Attributes:
        target: [R, N] contiguous, uint8 or floating, or None.
        row: [B, M] int32: row of each query's map, or -1; None: the maps are dense, row b M + m.
        weight: [R] contiguous floating, or None.
        scale: [R] contiguous floating, or None.
        ignored: [B, N] uint8, not 0 = ignore, or None.
        is_sqrt: whether codes are of the square root.
    """

    target: Tensor | None
    row: Tensor | None
    weight: Tensor | None
    scale: Tensor | None
    ignored: Tensor | None
    is_sqrt: bool

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        target: Tensor | None,
        row_weight: Tensor | None,
        target_scale: Tensor | None,
        key_padding_mask: Tensor | None,
        row_batch: Tensor | None,
        row_query: Tensor | None,
        companding: str,
    ) -> Maps:
        """Make it from the arguments of the block, for `size` = (B, M)."""
        row = None
        if target is not None and row_batch is not None and row_query is not None:
            row = torch.full(size, -1, dtype=torch.int32, device=target.device)
            numbers = torch.arange(row_batch.shape[0], dtype=torch.int32, device=target.device)
            row[row_batch.long(), row_query.long()] = numbers
        if target is not None:
            target = (target.float() if target.dtype == torch.float64 else target).flatten(0, -2).contiguous()
        return cls(
            target=target,
            row=row,
            weight=None if target is None or row_weight is None else row_weight.float().flatten(),
            scale=None if target_scale is None else target_scale.float().flatten(),
            ignored=None if key_padding_mask is None else key_padding_mask.contiguous().view(torch.uint8),
            is_sqrt=target_scale is not None and companding == "sqrt",
        )

    def pointers(self) -> tuple[Tensor | None, ...]:
        """Return the tensors in the order of the kernels' arguments."""
        return self.target, self.row, self.weight, self.scale, self.ignored

    def note(self) -> str:
        """Return as text what the best tile depends on: the dtype of the maps, and whether they come in rows."""
        dtype = "none" if self.target is None else str(self.target.dtype).removeprefix("torch.")
        return f"target {dtype}{'' if self.row is None else ' in rows'}"


def attend(q: Tensor, kv: Tensor, heads: int, maps: Maps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o = P V [B, M, Dq]; lse [B, H, M]; kl and sum T [R, H] (R = 0 without a target), in fp32."""
    (batch, words, query_dim), patches, width = q.shape, kv.shape[1], q.shape[2] // heads
    o = q.new_empty(batch, words, query_dim)
    lse = q.new_empty(batch, heads, words, dtype=torch.float32)
    rows = 0 if maps.target is None else maps.target.shape[0]
    # A GPU does not look whether two rows name one query: then one of them is written, and the other stays zero.
    new: Callable[..., Tensor] = q.new_empty if maps.row is None else q.new_zeros
    kl, t_sum = (new(rows, heads, dtype=torch.float32) for _ in range(2))

    def run(tile: Tile) -> tuple[Tensor, ...]:
        shape = Rows.of(tile, heads, words, width, 16 if q.dtype == torch.float32 else 64)
        forward_kernel[(batch * (heads // shape.heads) * blocks(words, shape.words),)](
            *(q, kv, *maps.pointers(), o, lse),
            *((None, None) if maps.target is None else (kl, t_sum)),
            *(q.stride(0), words),
            **_constants(shape, tile, heads, width, patches, maps, q),
        )
        return o, lse, kl, t_sum

    launch(_problem("forward", q, heads, patches, maps), q.device, run)
    return o, lse, kl, t_sum


def attend_backward(
    q: Tensor,
    kv: Tensor,
    heads: int,
    maps: Maps,
    saved: tuple[Tensor, Tensor, Tensor, Tensor],
    do: Tensor,
    dkl: Tensor,
    dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq [B, M, Dq]; g = rstd dKV [B, N, 2 Dq]; coef [B * N] in fp32, or [0] without layer norm.

    Args:
        saved: o, lse, sum T, and rstd [B, N] or [0].
        dkl: [R, H] in fp32, contiguous.
    """
    o, lse, t_sum, rstd = saved
    (batch, words, query_dim), patches, width = q.shape, kv.shape[1], q.shape[2] // heads
    delta = (o.float() * do.float()).view(batch, words, heads, width).sum(-1).transpose(1, 2).contiguous()
    dq, g = q.new_empty(batch, words, query_dim), kv.new_empty(kv.shape)
    kl_pointers = (None, None) if maps.target is None else (t_sum, dkl)
    norm = rstd if rstd.numel() else None

    def run(tile: Tile) -> tuple[Tensor, ...]:
        shape = Rows.of(tile, heads, words, width, 16)
        groups, word_blocks = heads // shape.heads, blocks(words, shape.words)
        coef = q.new_empty(groups, rstd.numel(), dtype=torch.float32)
        constants = _constants(shape, tile, heads, width, patches, maps, q)
        pointers = (q, kv, *maps.pointers(), do, lse, delta, *kl_pointers, norm)
        sizes = (q.stride(0), words, batch * patches, 1.0 / dim)
        is_one = word_blocks == 1
        queries_kernel[(batch * groups * word_blocks,)](
            *(*pointers, dq, g if is_one else None, coef if is_one else None, *sizes), **constants
        )
        if not is_one:
            keys_kernel[(batch * groups * blocks(patches, tile.depth),)](*(*pointers, g, coef, *sizes), **constants)
        return dq, g, coef[0] if groups == 1 else coef.sum(0)

    return launch(_problem("backward", q, heads, patches, maps), q.device, run)  # type: ignore[return-value]


def fused_forward(
    q: Tensor, x: Tensor, w: Tensor, heads: int, eps: float | None, maps: Maps
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """o, kl [R, H]; for the gradient lse, sum T, kv, mean, rstd."""
    with on_device_of(x):
        kv, mean, rstd = project(readable(x, maps), w.to(x.dtype).contiguous(), eps)
        o, lse, kl, t_sum = attend(samples(q), kv, heads, maps)
    return o, kl, lse, t_sum, kv, mean, rstd


def fused_backward(
    q: Tensor,
    x: Tensor,
    w: Tensor,
    heads: int,
    maps: Maps,
    saved: tuple[Tensor, ...],
    do: Tensor,
    dkl: Tensor,
    needed: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dx and dw (in fp32); [0] for what of x and w is not needed. `saved`: o, lse, sum T, kv, mean, rstd."""
    o, lse, t_sum, kv, mean, rstd = saved
    with on_device_of(x):
        x = readable(x, maps)
        rest = do.to(q.dtype).contiguous(), dkl.float().contiguous(), x.shape[2]
        dq, g, coef = attend_backward(samples(q), kv, heads, maps, (o, lse, t_sum, rstd), *rest)
        dx = features_gradient(g, w.to(x.dtype).contiguous(), x, mean, coef) if needed[0] else x.new_empty(0)
        dw = weights_gradient(x, g) if needed[1] else w.new_empty(0, dtype=torch.float32)
    return dq, dx, dw


def samples(q: Tensor) -> Tensor:
    """Return q [B, M, Dq] with every sample contiguous; a single one may be shared by all, as `expand` makes it."""
    return q if q.stride()[1:] == (q.shape[2], 1) else q.contiguous()


def readable(x: Tensor, maps: Maps) -> Tensor:
    """x with zeros where it is ignored, for it may hold NaN there; contiguous."""
    return (x if maps.ignored is None else x.masked_fill(maps.ignored[..., None] != 0, 0.0)).contiguous()


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current one: Triton launches there."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _problem(kernel: Any, q: Tensor, heads: int, patches: int, maps: Maps) -> Problem:
    sizes = {"rows": q.shape[1], "columns": q.shape[2] // heads, "depth": patches}
    return Problem.of(kernel, q, sizes, f"{heads} heads, {maps.note()}")


def _constants(shape: Rows, tile: Tile, heads: int, width: int, patches: int, maps: Maps, q: Tensor) -> dict[str, Any]:
    return {
        "N": patches,
        "H": heads,
        "DH": width,
        "HP": shape.heads,
        "W": shape.words,
        "SQRT": maps.is_sqrt,
        "PRECISION": precision(q),
        "BLOCK_R": shape.block_rows,
        "BLOCK_C": shape.block_columns,
        "BLOCK_M": shape.block_words,
        "BLOCK_N": tile.depth,
        "num_warps": tile.warps,
        "num_stages": shape.stages,
    }

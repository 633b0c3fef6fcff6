"""What the op accepts: the checks at its public boundary, and the decoding of stored targets.

Every implementation of the op goes through these, so that all of them refuse the same inputs with the same
words. Only shapes, dtypes and devices are looked at; looking at values would wait for the device.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Companding = Literal["linear", "sqrt"]
"""How a uint8 target was quantised: `linear` decodes as scale * (q/255), `sqrt` as scale * (q/255)^2."""

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that scores, softmax and reductions are held in: fp64 for fp64 input, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def decode_target(target: Tensor, target_scale: Tensor | None, companding: Companding, dtype: torch.dtype) -> Tensor:
    """Turn stored targets into maps of `dtype`.

    Args:
        target: [..., N], uint8 codes or floating maps.
        target_scale: [...], the value that code 255 stands for; None for floating maps.
        companding: the curve of the codes; has no meaning for floating maps.
        dtype: what to return.

    Returns:
        [..., N]. Rows of floating maps come back as they are: nothing is normalised.
    """
    maps = target.to(dtype)
    if target_scale is None:
        return maps
    maps = maps / 255
    if companding == "sqrt":
        maps = maps.square_()
    return maps.mul_(target_scale.to(dtype)[..., None])


def check_scores_inputs(u: Tensor, x: Tensor, key_padding_mask: Tensor | None, layer_norm_eps: float | None) -> None:
    """Raise ValueError unless u [B, H, M, D], x [B, N, D] and key_padding_mask [B, N] belong together."""
    if layer_norm_eps is not None and not 0 < layer_norm_eps < math.inf:
        raise ValueError(f"layer_norm_eps must be above 0, or None for no layer norm, got {layer_norm_eps}.")
    if u.ndim != 4:
        raise ValueError(f"u must be [B, H, M, D], got shape {_shape(u)}.")
    if x.ndim != 3:
        raise ValueError(f"x must be [B, N, D], got shape {_shape(x)}.")
    batch, _, _, dim = u.shape
    if x.shape[0] != batch or x.shape[2] != dim:
        raise ValueError(f"x must be [B, N, D] with B={batch} and D={dim} as in u {_shape(u)}, got shape {_shape(x)}.")
    if x.shape[1] == 0 or dim == 0:
        raise ValueError(f"x must hold at least one patch and one channel, got shape {_shape(x)}.")
    if u.dtype not in FLOAT_DTYPES:
        raise ValueError(f"u must be float16, bfloat16, float32 or float64, got {u.dtype}.")
    if x.dtype != u.dtype:
        raise ValueError(f"x must be {u.dtype} as u is, got {x.dtype}. Cast one of them.")
    _check_device("x", x, u.device)
    check_mask(u.device, (batch, x.shape[1]), key_padding_mask)


def check_mask(device: torch.device, size: tuple[int, int], key_padding_mask: Tensor | None) -> None:
    """Raise ValueError unless a mask belongs to `size` = (B, N)."""
    if key_padding_mask is None:
        return
    _check_shape("key_padding_mask", key_padding_mask, "[B, N]", size)
    if key_padding_mask.dtype != torch.bool:
        raise ValueError(f"key_padding_mask must be bool (True = ignore), got {key_padding_mask.dtype}.")
    _check_device("key_padding_mask", key_padding_mask, device)


def check_inputs(
    u: Tensor,
    x: Tensor,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    companding: str,
    key_padding_mask: Tensor | None,
    layer_norm_eps: float | None,
    *,
    row_batch: Tensor | None = None,
    row_query: Tensor | None = None,
) -> None:
    """Raise ValueError unless the arguments of `interaction_attention` fit its contract."""
    check_scores_inputs(u, x, key_padding_mask, layer_norm_eps)
    check_targets(
        u.device,
        (u.shape[0], u.shape[2]),
        x.shape[1],
        target,
        row_weight,
        target_scale,
        companding,
        row_batch,
        row_query,
    )


def check_targets(
    device: torch.device,
    queries: tuple[int, int],
    patches: int,
    target: Tensor | None,
    row_weight: Tensor | None,
    target_scale: Tensor | None,
    companding: str,
    row_batch: Tensor | None,
    row_query: Tensor | None,
) -> None:
    """Raise ValueError unless maps, and what comes with them, belong to `queries` = (B, M) and N patches."""
    letters, rows = "B, M", tuple(queries)
    if row_batch is not None or row_query is not None:
        if target is None:
            raise ValueError("row_batch and row_query must be None without a target, got at least one.")
        check_rows(device, queries, row_batch, row_query, row_count=target.shape[0] if target.ndim else 0)
        letters, rows = "R", tuple(target.shape[:1])
    if companding not in get_args(Companding):
        raise ValueError(f'companding must be "linear" or "sqrt", got {companding!r}.')
    if target is not None:
        _check_shape("target", target, f"[{letters}, N]", (*rows, patches))
        if target.dtype != torch.uint8 and target.dtype not in FLOAT_DTYPES:
            raise ValueError(f"target must be uint8 or floating point, got {target.dtype}.")
        _check_constant("target", target, device)
    if row_weight is not None:
        _check_shape("row_weight", row_weight, f"[{letters}]", rows)
        if row_weight.dtype not in FLOAT_DTYPES:
            raise ValueError(f"row_weight must be floating point, got {row_weight.dtype}.")
        _check_constant("row_weight", row_weight, device)
    is_coded = target is not None and target.dtype == torch.uint8
    if target_scale is None:
        if is_coded:
            raise ValueError(f"target_scale must be given [{letters}] for a uint8 target, got None.")
        return
    if not is_coded:
        kind = "no target" if target is None else f"a {target.dtype} target"
        raise ValueError(f"target_scale must be None unless target is uint8, got one with {kind}.")
    _check_shape("target_scale", target_scale, f"[{letters}]", rows)
    if target_scale.dtype not in FLOAT_DTYPES:
        raise ValueError(f"target_scale must be floating point, got {target_scale.dtype}.")
    _check_constant("target_scale", target_scale, device)


def check_rows(
    device: torch.device,
    queries: tuple[int, int],
    row_batch: Tensor | None,
    row_query: Tensor | None,
    *,
    row_count: int | None = None,
    ordered: bool = True,
) -> None:
    """Raise ValueError unless row_batch and row_query [R] name rows of `queries` = (B, M).

    `ordered`: sample after sample, and each once. Values are looked at on the CPU alone: on a GPU it would wait for
    the device.
    """
    if row_batch is None or row_query is None:
        raise ValueError("row_batch and row_query must be given together, got one of them.")
    count = row_batch.numel() if row_count is None else row_count
    for name, index in (("row_batch", row_batch), ("row_query", row_query)):
        _check_shape(name, index, "[R]", (count,))
        if index.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be int64 or int32, got {index.dtype}.")
        _check_device(name, index, device)
    if device.type != "cpu" or count == 0 or torch.compiler.is_compiling():
        return
    for name, index, size in zip(("row_batch", "row_query"), (row_batch, row_query), queries, strict=True):
        if int(index.min()) < 0 or int(index.max()) >= size:
            raise ValueError(f"{name} must lie in 0..{size - 1}, got {int(index.min())}..{int(index.max())}.")
    if not ordered:
        return
    if bool((row_batch[1:] < row_batch[:-1]).any()):
        raise ValueError("row_batch must not decrease, got rows of one sample after those of a later one. Sort them.")
    pairs = row_batch.long() * queries[1] + row_query.long()
    if torch.unique(pairs).numel() < count:
        raise ValueError("Each pair of row_batch and row_query must occur once, got one twice.")


def _check_constant(name: str, tensor: Tensor, device: torch.device) -> None:
    _check_device(name, tensor, device)
    if tensor.requires_grad:
        raise ValueError(f"{name} must be a constant, got one that requires grad. Detach it.")


def _check_shape(name: str, tensor: Tensor, letters: str, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {letters} = {list(shape)}, got shape {_shape(tensor)}.")


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got one on {tensor.device}.")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)

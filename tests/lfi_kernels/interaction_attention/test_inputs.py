"""What the op refuses and with which words, and how stored maps are decoded; every number by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lfi_kernels.interaction_attention.inputs import (
    accumulation_dtype,
    check_inputs,
    check_mask,
    check_rows,
    check_scores_inputs,
    check_targets,
    decode_target,
)

CPU = torch.device("cpu")
BATCH, HEADS, WORDS, PATCHES, DIM = 2, 3, 4, 5, 6


def given(**changes: Any) -> dict[str, Any]:
    """Arguments of `check_inputs` that fit, but for `changes`."""
    fitting: dict[str, Any] = {
        "u": torch.zeros(BATCH, HEADS, WORDS, DIM),
        "x": torch.zeros(BATCH, PATCHES, DIM),
        "target": torch.zeros(BATCH, WORDS, PATCHES, dtype=torch.uint8),
        "row_weight": torch.ones(BATCH, WORDS),
        "target_scale": torch.ones(BATCH, WORDS, dtype=torch.float16),
        "companding": "sqrt",
        "key_padding_mask": torch.zeros(BATCH, PATCHES, dtype=torch.bool),
        "layer_norm_eps": 1e-5,
    }
    return fitting | changes


def test_codes_are_decoded_by_their_curve_and_maps_are_left_alone() -> None:
    codes = torch.tensor([[0, 51, 255], [102, 255, 0]], dtype=torch.uint8)  # 0, 1/5, 1 and 2/5, 1, 0
    scale = torch.tensor([0.5, 2.0])
    linear = decode_target(codes, scale, "linear", torch.float64)
    torch.testing.assert_close(linear, torch.tensor([[0, 0.1, 0.5], [0.8, 2.0, 0]], dtype=torch.float64))
    root = decode_target(codes, scale, "sqrt", torch.float64)
    torch.testing.assert_close(root, torch.tensor([[0, 0.02, 0.5], [0.32, 2.0, 0]], dtype=torch.float64))
    maps = torch.tensor([[0.25, 3.0]], dtype=torch.float16)
    found = decode_target(maps, None, "sqrt", torch.float32)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.25, 3.0]]


def test_decoding_leaves_the_callers_maps_as_they_were() -> None:
    maps, scale = torch.full((2, 3), 0.5), torch.ones(2)
    decode_target(maps, scale, "sqrt", torch.float32)
    assert (maps == 0.5).all()
    assert (scale == 1).all()


def test_sums_are_held_in_fp32_or_wider() -> None:
    narrow = (torch.float16, torch.bfloat16, torch.float32)
    assert {accumulation_dtype(dtype) for dtype in narrow} == {torch.float32}
    assert accumulation_dtype(torch.float64) == torch.float64


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target": None, "target_scale": None},
        {"row_weight": None, "key_padding_mask": None, "layer_norm_eps": None},
        {"target": torch.zeros(BATCH, WORDS, PATCHES, dtype=torch.bfloat16), "target_scale": None},
        {"companding": "linear"},
        {  # in rows
            "target": torch.zeros(3, PATCHES),
            "target_scale": None,
            "row_weight": torch.ones(3),
            "row_batch": torch.tensor([0, 0, 1]),
            "row_query": torch.tensor([3, 1, 0], dtype=torch.int32),
        },
    ],
)
def test_what_fits_is_taken(changes: dict[str, Any]) -> None:
    check_inputs(**given(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be above 0, or None for no layer norm, got 0.0."),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be above 0, or None for no layer norm, got nan."),
        ({"u": torch.zeros(2, 4, 6)}, "u must be [B, H, M, D], got shape [2, 4, 6]."),
        ({"x": torch.zeros(5, 6)}, "x must be [B, N, D], got shape [5, 6]."),
        (
            {"x": torch.zeros(2, 5, 7)},
            "x must be [B, N, D] with B=2 and D=6 as in u [2, 3, 4, 6], got shape [2, 5, 7].",
        ),
        ({"x": torch.zeros(2, 0, 6)}, "x must hold at least one patch and one channel, got shape [2, 0, 6]."),
        (
            {"u": torch.zeros(2, 3, 4, 6, dtype=torch.int64)},
            "u must be float16, bfloat16, float32 or float64, got torch.int64.",
        ),
        (
            {"x": torch.zeros(2, 5, 6, dtype=torch.float16)},
            "x must be torch.float32 as u is, got torch.float16. Cast one of them.",
        ),
        ({"x": torch.zeros(2, 5, 6, device="meta")}, "x must be on cpu, got one on meta."),
        (
            {"key_padding_mask": torch.zeros(2, 4, dtype=torch.bool)},
            "key_padding_mask must be [B, N] = [2, 5], got shape [2, 4].",
        ),
        ({"key_padding_mask": torch.zeros(2, 5)}, "key_padding_mask must be bool (True = ignore), got torch.float32."),
        ({"companding": "cubic"}, 'companding must be "linear" or "sqrt", got \'cubic\'.'),
        (
            {"target": torch.zeros(2, 3, 5, dtype=torch.uint8)},
            "target must be [B, M, N] = [2, 4, 5], got shape [2, 3, 5].",
        ),
        (
            {"target": torch.zeros(2, 4, 5, dtype=torch.int32), "target_scale": None},
            "target must be uint8 or floating point, got torch.int32.",
        ),
        (
            {"target": torch.zeros(2, 4, 5, requires_grad=True), "target_scale": None},
            "target must be a constant, got one that requires grad. Detach it.",
        ),
        ({"row_weight": torch.ones(2, 5)}, "row_weight must be [B, M] = [2, 4], got shape [2, 5]."),
        (
            {"row_weight": torch.ones(2, 4, dtype=torch.bool)},
            "row_weight must be floating point, got torch.bool.",
        ),
        ({"target_scale": None}, "target_scale must be given [B, M] for a uint8 target, got None."),
        ({"target": None}, "target_scale must be None unless target is uint8, got one with no target."),
        (
            {"target": torch.zeros(2, 4, 5)},
            "target_scale must be None unless target is uint8, got one with a torch.float32 target.",
        ),
        ({"target_scale": torch.ones(2)}, "target_scale must be [B, M] = [2, 4], got shape [2]."),
        (
            {"target": None, "target_scale": None, "row_batch": torch.tensor([0])},
            "row_batch and row_query must be None without a target, got at least one.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
        check_inputs(**given(**changes))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("row_batch", "row_query", "message"),
    [
        ([0, 1], None, "row_batch and row_query must be given together, got one of them."),
        ([0, 1], [0], "row_query must be [R] = [2], got shape [1]."),
        ([0, 2], [0, 0], "row_batch must lie in 0..1, got 0..2."),
        ([0, 1], [-1, 3], "row_query must lie in 0..3, got -1..3."),
        ([1, 0], [0, 0], "row_batch must not decrease, got rows of one sample after those of a later one. Sort them."),
        ([0, 1, 1], [0, 2, 2], "Each pair of row_batch and row_query must occur once, got one twice."),
    ],
)
def test_rows_name_each_query_once_and_in_order(
    row_batch: list[int], row_query: list[int] | None, message: str
) -> None:
    query = None if row_query is None else torch.tensor(row_query)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
        check_rows(CPU, (BATCH, WORDS), torch.tensor(row_batch), query)
    assert str(refused.value) == message


def test_rows_may_come_in_any_order_and_twice_where_that_is_allowed() -> None:
    check_rows(CPU, (BATCH, WORDS), torch.tensor([1, 0, 1]), torch.tensor([3, 0, 3]), ordered=False)
    check_rows(CPU, (BATCH, WORDS), torch.tensor([0, 0, 1]), torch.tensor([3, 0, 3]))  # queries need no order
    none = torch.tensor([], dtype=torch.int64)
    check_rows(CPU, (BATCH, WORDS), none, none)
    with pytest.raises(ValueError, match=r"row_batch must be int64 or int32, got torch\.float32"):
        check_rows(CPU, (BATCH, WORDS), torch.tensor([0.0]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"row_batch must be \[R\] = \[2\], got shape \[1\]"):
        check_targets(
            CPU, (BATCH, WORDS), PATCHES, torch.zeros(2, PATCHES), None, None, "sqrt", none.new_zeros(1), none
        )


def test_values_on_a_device_are_not_waited_for() -> None:
    """The same rows that the CPU refuses, on a device: only shapes, dtypes and devices are looked at."""
    meta = torch.device("meta")
    rows = torch.zeros(2, dtype=torch.int64, device=meta)
    check_rows(meta, (BATCH, WORDS), rows, rows)  # twice the same pair, had it values
    check_mask(meta, (BATCH, PATCHES), torch.empty(BATCH, PATCHES, dtype=torch.bool, device=meta))
    check_scores_inputs(
        torch.empty(BATCH, HEADS, WORDS, DIM, device=meta), torch.empty(BATCH, PATCHES, DIM, device=meta), None, None
    )
    with pytest.raises(ValueError, match="row_batch must be on meta, got one on cpu"):
        check_rows(meta, (BATCH, WORDS), rows.new_zeros(2, device=CPU), rows)

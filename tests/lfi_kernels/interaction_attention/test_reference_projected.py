"""Without folding, the reference gives what it gives with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lfi_kernels import InteractionQueryBlock, interaction_query
from lfi_kernels.interaction_attention import reference

FEW = torch.tensor([[0, 1], [0, 4], [2, 0]])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [None, FEW])
@pytest.mark.parametrize("kind", ["codes", "maps", "none"])
def test_it_is_the_block(kind: str, rows: Any, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = InteractionQueryBlock(12, 10, 3).double()
    nn.init.xavier_uniform_(block.w_o)
    queries, features = torch.randn(3, 5, 12).double().requires_grad_(), torch.randn(3, 7, 10).double().requires_grad_()
    shape = (3, 5) if rows is None else (3,)
    target = scale = weight = mask = None
    if kind != "none":
        target, weight = (2 * torch.randn(*shape, 7).double()).softmax(-1), torch.rand(shape).double() + 0.1
        weight.flatten()[0] = 0.0
    if kind == "codes":
        assert target is not None
        target, scale = (255 * target).to(torch.uint8), torch.rand(shape).double()
    if masked:
        mask = torch.zeros(3, 7, dtype=torch.bool)
        mask[0, 2:4], mask[2] = True, True
    index = (None, None) if rows is None or kind == "none" else (rows[:, 0], rows[:, 1])
    named = {"row_batch": index[0], "row_query": index[1]}

    def passes() -> list[torch.Tensor]:
        state, kl = block(queries, features, target, weight, scale, "sqrt", mask, **named)
        g = torch.Generator().manual_seed(1)
        loss = (state * torch.randn(state.shape, generator=g).double()).sum() + (kl * kl).sum()
        return [state, kl, *torch.autograd.grad(loss, (queries, features, *block.parameters()))]

    monkeypatch.setattr(interaction_query, "folds", lambda *_: True)
    truth = passes()
    monkeypatch.setattr(interaction_query, "resolve", lambda *_: "triton")  # the path of the fused kernels,
    monkeypatch.setattr(interaction_query, "projected_attention", reference.projected_attention)  # by the reference
    for found, exact in zip(passes(), truth, strict=True):
        torch.testing.assert_close(found, exact)


def test_fp16_features_that_a_layer_norm_must_come_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under fp16 autocast wide features are normalised before they are narrowed: they may not fit."""
    block = InteractionQueryBlock(12, 10, 3)
    eps: list[float | None] = []

    def noted(*given: Any) -> Any:
        eps.append(given[-1])
        assert given[1].dtype == given[0].dtype
        assert given[1].isfinite().all()
        return reference.projected_attention(given[0], given[1], given[2].to(given[0].dtype), *given[3:])

    monkeypatch.setattr(interaction_query, "resolve", lambda *_: "triton")
    monkeypatch.setattr(interaction_query, "projected_attention", noted)
    queries, features = torch.randn(2, 4, 12), 1e6 * torch.randn(2, 7, 10)
    truth = block.attention(queries, features)
    for dtype, expected in ((torch.float16, None), (torch.bfloat16, 1e-5)):
        with torch.autocast("cpu", dtype=dtype):
            state, _ = block(queries, features)
        assert state.isfinite().all()
        assert eps.pop() == expected
    assert truth.isfinite().all()

"""The block with many queries of which few have a map: rows, shared seeds, blocks of queries."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from lfi_kernels import InteractionQueryBlock, interaction_query


@pytest.fixture(params=[True, False], ids=["folded", "projected"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of the CPU, whatever the sizes ask for."""
    monkeypatch.setattr(interaction_query, "folds", lambda *_: request.param)


BATCH, QUERY = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([8, 1, 4, 0, 6])
"""Of three samples and nine queries."""


def make() -> tuple[InteractionQueryBlock, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    block = InteractionQueryBlock(12, 10, 3).double()
    nn.init.xavier_uniform_(block.w_o)
    queries, features = torch.randn(3, 9, 12).double(), torch.randn(3, 7, 10).double()
    target, weight = (2 * torch.randn(3, 9, 7).double()).softmax(-1), 1 - torch.rand(3, 9).double()
    return block, queries.requires_grad_(), features.requires_grad_(), target, weight


def results(block: InteractionQueryBlock, queries: Tensor, features: Tensor, *given: Tensor, **rows: Tensor) -> list:
    """State, kl, and the gradients of a random projection of both."""
    state, kl = block(queries, features, *given, **rows)
    g = torch.Generator().manual_seed(1)
    probe = torch.randn(state.shape, generator=g).double()
    loss = (state * probe).sum() + (kl * torch.arange(1, kl.numel() + 1).view(kl.shape)).sum()
    return [state, kl, *torch.autograd.grad(loss, (queries, features, *block.parameters()))]


def assert_same(found: list, truth: list) -> None:
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b)


def test_rows_equal_the_dense_form() -> None:
    block, queries, features, target, weight = make()
    sparse = torch.zeros_like(weight)
    sparse[BATCH, QUERY] = weight[BATCH, QUERY]
    state, kl = block(queries, features, target, sparse)
    given = target[BATCH, QUERY], weight[BATCH, QUERY]
    found = block(queries, features, *given, row_batch=BATCH, row_query=QUERY)
    assert_same(list(found), [state, kl[BATCH, :, QUERY]])


@pytest.mark.parametrize("at_once", [1, 2, 4, 8])
@pytest.mark.parametrize("with_rows", [False, True])
def test_blocks_of_queries_change_nothing(with_rows: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block, queries, features, target, weight = make()
    given, rows = (target, weight), {}
    if with_rows:
        given, rows = (target[BATCH, QUERY], weight[BATCH, QUERY]), {"row_batch": BATCH, "row_query": QUERY}
    truth = results(block, queries, features, *given, **rows)
    bare = block(queries, features)
    monkeypatch.setattr(interaction_query, "NUMBERS_AT_ONCE", at_once * 3 * 3 * 10)
    sizes: list[int] = []
    softmax = torch.Tensor.softmax, torch.Tensor.log_softmax

    def noted(which: int) -> Any:
        return lambda scores, dim: sizes.append(scores.numel()) or softmax[which](scores, dim)

    with patch.multiple(torch.Tensor, softmax=noted(0), log_softmax=noted(1)):
        found = results(block, queries, features, *given, **rows)
    assert max(sizes) == at_once * 3 * 3 * 7  # scores that were in memory
    assert_same(found, truth)
    assert_same(list(block(queries, features)), list(bare))


def test_blocks_serve_under_autocast_too(monkeypatch: pytest.MonkeyPatch) -> None:
    block, queries, features, target, weight = make()
    block, queries, features = block.float(), queries.detach().float(), features.detach().float()
    given = target[BATCH, QUERY].float(), weight[BATCH, QUERY].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        truth = block(queries, features, *given, row_batch=BATCH, row_query=QUERY)
        monkeypatch.setattr(interaction_query, "NUMBERS_AT_ONCE", 270)
        found = block(queries, features, *given, row_batch=BATCH, row_query=QUERY)
        found[1].sum().backward()
    torch.testing.assert_close(found[1], truth[1], rtol=1e-2, atol=1e-2)


def test_seeds_that_all_samples_share() -> None:
    block, queries, features, target, weight = make()
    seeds = queries.detach()[:1].requires_grad_()
    given, rows = (target[BATCH, QUERY], weight[BATCH, QUERY]), {"row_batch": BATCH, "row_query": QUERY}
    truth = results(block, seeds.detach().repeat(3, 1, 1).requires_grad_(), features, *given, **rows)
    truth[2] = truth[2].sum(0, keepdim=True)
    assert_same(results(block, seeds, features, *given, **rows), truth)
    assert block.attention(seeds, features).shape == (3, 3, 9, 7)


def test_maps_of_chosen_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    block, queries, features, _, _ = make()
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[2, 3:] = True
    batch, query = torch.tensor([2, 0, 2, 1]), torch.tensor([5, 8, 5, 0])  # in any order, and twice
    for ignore in (None, mask):
        truth = block.attention(queries, features, ignore)[batch, :, query]
        for at_once in (2**26, 2 * 7 * 10):  # two rows at a time
            monkeypatch.setattr(interaction_query, "NUMBERS_AT_ONCE", at_once)
            found = block.attention(queries, features, ignore, row_batch=batch, row_query=query)
            torch.testing.assert_close(found, truth)
    none = torch.zeros(0, dtype=torch.long)
    assert block.attention(queries, features, row_batch=none, row_query=none).shape == (0, 3, 7)
    with pytest.raises(ValueError, match=r"row_query must lie in 0\.\.8, got 0\.\.9"):
        block.attention(queries, features, row_batch=batch, row_query=torch.tensor([5, 9, 5, 0]))


def test_a_graph_with_any_batch_size_can_be_exported() -> None:
    block, queries, features, _, _ = make()
    dims = {0: torch.export.Dim("batch", min=2)}
    told = {"queries": dims, "features": dims}
    exported = torch.export.export(block, (queries, features), dynamic_shapes=told).module()
    bigger = queries.detach().repeat(2, 1, 1), features.detach().repeat(2, 1, 1)
    torch.testing.assert_close(exported(*bigger)[0], block(*bigger)[0])

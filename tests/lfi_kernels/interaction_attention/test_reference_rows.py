"""Maps as rows that name their sample and query: equal to the dense form, and nothing else is read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lfi_kernels import interaction_attention


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u [3, 2, 6, 5] and x [3, 7, 5], leaves, and dense maps and weights of every query."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(3, 2, 6, 5, generator=g, dtype=torch.float64)
    x = torch.randn(3, 7, 5, generator=g, dtype=torch.float64)
    target = (2 * torch.randn(3, 6, 7, generator=g, dtype=torch.float64)).softmax(-1)
    weight = 1 - torch.rand(3, 6, generator=g, dtype=torch.float64)
    return u.to(dtype).requires_grad_(), x.to(dtype).requires_grad_(), target.to(dtype), weight.to(dtype)


BATCH, QUERY = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([4, 1, 0, 5, 3])
"""Sample 1 has no map."""


def gradients(outputs: tuple[Tensor, Tensor], probes: tuple[Tensor, Tensor], leaves: tuple[Tensor, Tensor]) -> list:
    return list(torch.autograd.grad(sum((o * p).sum() for o, p in zip(outputs, probes, strict=True)), leaves))


@pytest.mark.parametrize("eps", [None, 1e-5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_rows_equal_the_dense_form_where_every_other_weight_is_zero(
    index: torch.dtype, masked: bool, eps: float | None
) -> None:
    u, x, target, weight = draw()
    mask = None
    if masked:
        mask = torch.zeros(3, 7, dtype=torch.bool)
        mask[0, 2:4], mask[2] = True, True
    told = {"key_padding_mask": mask, "layer_norm_eps": eps}
    sparse = torch.zeros_like(weight)
    sparse[BATCH, QUERY] = weight[BATCH, QUERY]
    z, kl = interaction_attention(u, x, target, sparse, **told)
    rows = {"row_batch": BATCH.to(index), "row_query": QUERY.to(index)}
    found = interaction_attention(u, x, target[BATCH, QUERY], weight[BATCH, QUERY], **told, **rows)
    assert found[1].shape == (5, 2)
    torch.testing.assert_close(found[0], z)
    torch.testing.assert_close(found[1], kl[BATCH, :, QUERY])
    g = torch.Generator().manual_seed(1)
    probes = tuple(torch.randn(out.shape, generator=g, dtype=torch.float64) for out in (z, kl))
    truth = gradients((z, kl), probes, (u, x))
    for a, b in zip(gradients(found, (probes[0], probes[1][BATCH, :, QUERY]), (u, x)), truth, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_those_of_finite_differences() -> None:
    u, x, target, weight = draw()
    weight[0, 4] = 0.0
    maps, weights = target[BATCH, QUERY], weight[BATCH, QUERY]

    def op(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return interaction_attention(u, x, maps, weights, layer_norm_eps=1e-5, row_batch=BATCH, row_query=QUERY)

    assert torch.autograd.gradcheck(op, (u, x))


def test_codes_are_decoded_and_rows_without_weight_are_silent_whatever_they_hold() -> None:
    u, x, target, weight = draw(torch.float32)
    codes = (target * 255).round().to(torch.uint8)[BATCH, QUERY]
    scale, weights = torch.full((5,), 0.5), weight[BATCH, QUERY]
    rows = {"row_batch": BATCH, "row_query": QUERY}
    plain = interaction_attention(u, x, 0.5 * (codes / 255) ** 2, weights, **rows)[1]
    torch.testing.assert_close(interaction_attention(u, x, codes, weights, target_scale=scale, **rows)[1], plain)
    weights[1], scale[1] = 0.0, float("nan")
    kl = interaction_attention(u, x, codes, weights, target_scale=scale, **rows)[1]
    assert (kl[1] == 0).all()
    assert kl.isfinite().all()
    torch.testing.assert_close(kl[[0, 2, 3, 4]], plain[[0, 2, 3, 4]])


def test_no_rows_at_all() -> None:
    u, x, _, _ = draw()
    none = torch.zeros(0, dtype=torch.long)
    z, kl = interaction_attention(u, x, torch.zeros(0, 7), row_batch=none, row_query=none)
    torch.testing.assert_close(z, interaction_attention(u, x)[0])
    assert kl.shape == (0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_query": None}, "row_batch and row_query must be given together, got one of them"),
        ({"target": None}, "row_batch and row_query must be None without a target, got at least one"),
        ({"target": torch.zeros(5, 6)}, r"target must be \[R, N\] = \[5, 7\], got shape \[5, 6\]"),
        ({"target": torch.zeros(4, 7)}, r"row_batch must be \[R\] = \[4\], got shape \[5\]"),
        ({"row_weight": torch.ones(3, 6)}, r"row_weight must be \[R\] = \[5\], got shape \[3, 6\]"),
        ({"row_query": QUERY.float()}, "row_query must be int64 or int32, got torch.float32"),
        ({"row_query": QUERY + 1}, r"row_query must lie in 0..5, got 1..6"),
        ({"row_batch": BATCH - 1}, r"row_batch must lie in 0..2, got -1..1"),
        ({"row_batch": BATCH.flip(0)}, "row_batch must not decrease"),
        ({"row_query": torch.tensor([4, 4, 0, 5, 3])}, "Each pair of row_batch and row_query must occur once"),
        ({"target": torch.zeros(5, 7, dtype=torch.uint8)}, r"target_scale must be given \[R\] for a uint8 target"),
    ],
)
def test_rows_that_do_not_fit_are_refused(changes: dict[str, Tensor | None], message: str) -> None:
    u, x, _, _ = draw()
    given = {"target": torch.zeros(5, 7), "row_weight": None, "row_batch": BATCH, "row_query": QUERY} | changes
    with pytest.raises(ValueError, match=message):
        interaction_attention(u, x, **given)

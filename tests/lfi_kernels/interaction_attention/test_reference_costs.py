"""Costs of every pair: gradients in float64, every map written out as the truth, and the op they must agree with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_kernels import interaction_attention, interaction_costs


def draw(
    batch: int = 2, heads: int = 3, slots: int = 5, words: int = 4, patches: int = 7, dim: int = 6
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random u, x, target, row_weight in float64: leaves u and x, maps with exact zeros, weights in (0, 1]."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(batch, heads, slots, dim, generator=g, dtype=torch.float64) / dim**0.5
    x = torch.randn(batch, patches, dim, generator=g, dtype=torch.float64)
    target = (2 * torch.randn(batch, words, patches, generator=g, dtype=torch.float64)).softmax(-1)
    target[..., ::3] = 0.0
    target /= target.sum(-1, keepdim=True)
    weight = 1 - torch.rand(batch, words, generator=g, dtype=torch.float64)
    return u.requires_grad_(), x.requires_grad_(), target, weight


def every_pair(u: Tensor, x: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """KL [B, K, M] with all of [B, H, K, M, N] in memory."""
    log_p = F.log_softmax(u @ x[:, None].mT, -1)[:, :, :, None]
    maps = target[:, None, None].expand(*log_p.shape[:3], *target.shape[1:])
    kl = F.kl_div(log_p.expand_as(maps), maps, reduction="none").sum(-1).mean(1)
    return kl if weight is None else kl * weight[:, None]


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_finite_differences(masked: bool) -> None:
    u, x, target, weight = draw()
    weight[0, 1] = 0.0
    mask = None
    if masked:
        mask = torch.zeros(2, 7, dtype=torch.bool)
        mask[0, 2:4] = True
        mask[1] = True

    def op(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return interaction_costs(u, x, target, weight, key_padding_mask=mask)

    assert torch.autograd.gradcheck(op, (u, x))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("slots", "words"), [(1, 1), (1, 4), (5, 1), (3, 8), (8, 3)])
def test_equals_the_divergence_of_every_pair(slots: int, words: int, weighted: bool) -> None:
    u, x, target, weight = draw(slots=slots, words=words)
    row_weight = weight if weighted else None
    z, cost = interaction_costs(u, x, target, row_weight)
    truth = every_pair(u, x, target, row_weight)
    assert cost.shape == (2, slots, words)
    torch.testing.assert_close(cost, truth)
    torch.testing.assert_close(z, interaction_attention(u, x)[0])
    probe = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for found, expected in zip(
        torch.autograd.grad((cost * probe).sum(), (u, x)),
        torch.autograd.grad((truth * probe).sum(), (u, x)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_the_diagonal_is_what_the_op_gives_a_query_of_its_own_word() -> None:
    u, x, target, weight = draw(slots=4, words=4)
    _, kl = interaction_attention(u, x, target, weight)
    _, cost = interaction_costs(u, x, target, weight)
    torch.testing.assert_close(cost.diagonal(dim1=1, dim2=2), kl.mean(1))


def test_rows_need_not_be_normalised() -> None:
    u, x, target, weight = draw()
    torch.testing.assert_close(
        interaction_costs(u, x, 3 * target, weight)[1], every_pair(u, x, 3 * target, weight), rtol=1e-10, atol=1e-12
    )


def test_words_without_weight_or_map_have_a_column_of_zeros_and_no_gradient() -> None:
    u, x, target, weight = draw()
    weight[:, 0] = 0.0
    target[:, 0] = float("nan")
    target[:, 1] = 0.0
    z, cost = interaction_costs(u, x, target, weight)
    assert torch.equal(cost[:, :, :2], torch.zeros(2, 5, 2, dtype=torch.float64))
    assert (cost[:, :, 2:] > 0).all()
    assert z.isfinite().all()
    for gradient in torch.autograd.grad(cost[:, :, :2].sum(), (u, x)):
        assert not gradient.any()


def test_ignored_patches_are_left_out() -> None:
    u, x, target, weight = draw()
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[:, 4:] = True
    with torch.no_grad():
        hidden, shown = x.clone(), target.clone()
        hidden[:, 4:] = float("nan")
        shown[..., 4:] = float("nan")
        z, cost = interaction_costs(u, hidden, shown, weight, key_padding_mask=mask)
        short_z, short = interaction_costs(u, x[:, :4], target[..., :4].contiguous(), weight)
    torch.testing.assert_close(cost, short)
    torch.testing.assert_close(z, short_z)


def test_a_sample_with_every_patch_ignored_is_zero() -> None:
    u, x, target, weight = draw()
    z, cost = interaction_costs(u, x, target, weight, key_padding_mask=torch.ones(2, 7, dtype=torch.bool))
    assert not z.any()
    assert not cost.any()


def test_large_scores_cost_no_digits() -> None:
    u, x, target, weight = draw()
    with torch.no_grad():
        u = 50 * u
        narrow = interaction_costs(u.float(), x.float(), target.float(), weight.float())[1]
        truth = interaction_costs(u, x, target, weight)[1]
    assert truth.max() > 100
    torch.testing.assert_close(narrow.double(), truth, rtol=1e-5, atol=1e-4)


def test_codes_are_decoded() -> None:
    u, x, target, weight = draw()
    codes, scale = (target * 255).round().to(torch.uint8), torch.full((2, 4), 0.5)
    for companding in ("linear", "sqrt"):
        decoded = codes / 255 if companding == "linear" else (codes / 255) ** 2
        found = interaction_costs(u, x, codes, weight, target_scale=scale, companding=companding)[1]
        torch.testing.assert_close(
            found, interaction_costs(u, x, 0.5 * decoded.double(), weight)[1], rtol=1e-5, atol=1e-6
        )


def test_autocast_leaves_scores_and_sums_wide() -> None:
    u, x, target, weight = draw()
    narrow = [a.detach().bfloat16() for a in (u, x)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, cost = interaction_costs(*narrow, target, weight)
    assert z.dtype == torch.bfloat16
    assert cost.dtype == torch.float32
    truth = interaction_costs(*(a.double() for a in narrow), target, weight)[1]
    torch.testing.assert_close(cost.double(), truth, rtol=1e-5, atol=1e-6)


def test_inputs_that_do_not_fit_are_refused() -> None:
    u, x, target, weight = draw()
    with pytest.raises(ValueError, match=r"target must be \[B, M, N\] = \[2, 4, 7\], got shape \[2, 4, 6\]"):
        interaction_costs(u, x, target[..., :6], weight)
    with pytest.raises(ValueError, match=r"target must be \[B, M, N\]"):
        interaction_costs(u, x, target[0], weight)
    with pytest.raises(ValueError, match=r"row_weight must be \[B, M\] = \[2, 4\], got shape \[2, 5\]"):
        interaction_costs(u, x, target, torch.ones(2, 5, dtype=torch.float64))

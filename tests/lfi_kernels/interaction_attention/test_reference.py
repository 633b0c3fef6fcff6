"""The reference op: gradients in float64, a plain composition as the truth, and the edges of its contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lfi_kernels import attention_map, interaction_attention

# dtype -> bound on the largest error and on its RMS, both as a share of the truth's largest value.
TOLERANCES = {
    torch.float16: (1e-3, 3e-4),
    torch.bfloat16: (8e-3, 2e-3),
    torch.float32: (2e-6, 5e-7),
    torch.float64: (1e-13, 1e-14),
}


def draw(
    batch: int = 2,
    heads: int = 3,
    words: int = 4,
    patches: int = 7,
    dim: int = 5,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random u, x, target, row_weight: leaves u and x, peaked targets with exact zeros, weights in (0, 1]."""
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(batch, heads, words, dim, generator=g, dtype=torch.float64) / dim**0.5
    x = torch.randn(batch, patches, dim, generator=g, dtype=torch.float64)
    target = (2 * torch.randn(batch, words, patches, generator=g, dtype=torch.float64)).softmax(-1)
    if patches > 2:
        target[..., ::3] = 0.0
        target /= target.sum(-1, keepdim=True)
    weight = 1 - torch.rand(batch, words, generator=g, dtype=torch.float64)
    return u.to(dtype).requires_grad_(), x.to(dtype).requires_grad_(), target.to(dtype), weight.to(dtype)


def plain(u: Tensor, x: Tensor, target: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The op as one would write it without thinking of cost: every map in memory, one per head."""
    scores = u @ x[:, None].mT
    z = F.softmax(scores, -1) @ x[:, None]
    if target is None:
        return z, scores.new_zeros(u.shape[:3])
    maps = target[:, None].expand_as(scores)
    kl = F.kl_div(F.log_softmax(scores, -1), maps, reduction="none").sum(-1)
    return z, kl * weight[:, None]


def gradients(outputs: tuple[Tensor, Tensor], inputs: tuple[Tensor, ...], seed: int = 1) -> list[Tensor]:
    """Gradients of a random projection of both outputs, so that no two errors cancel."""
    g = torch.Generator().manual_seed(seed)
    loss = sum((out.double() * torch.randn(out.shape, generator=g).double()).sum() for out in outputs)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, inputs))


def assert_close(found: Tensor, truth: Tensor, dtype: torch.dtype, what: str) -> None:
    max_bound, rms_bound = TOLERANCES[dtype]
    error = (found.double() - truth.double()).abs()
    size = truth.double().abs().max().clamp(min=1.0)
    worst = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
    assert error.max() <= max_bound * size, f"{what}: max error {error.max():.2e} at {worst}, truth up to {size:.2e}"
    rms = error.square().mean().sqrt()
    assert rms <= rms_bound * size, f"{what}: RMS error {rms:.2e}, truth up to {size:.2e}"


@pytest.mark.parametrize("eps", [None, 1e-5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_target", [False, True])
def test_gradients_are_those_of_finite_differences(masked: bool, with_target: bool, eps: float | None) -> None:
    u, x, target, weight = draw()
    weight[0, 1] = 0.0
    mask = None
    if masked:
        mask = torch.zeros(2, 7, dtype=torch.bool)
        mask[0, 2:4] = True
        mask[1] = True

    def op(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = target if with_target else None
        return interaction_attention(u, x, maps, weight, key_padding_mask=mask, layer_norm_eps=eps)

    assert torch.autograd.gradcheck(op, (u, x))


@pytest.mark.parametrize("dim", [32, 48, 192])
@pytest.mark.parametrize("patches", [1, 49, 196, 197, 257])
@pytest.mark.parametrize("words", [1, 3, 16, 17])
def test_matches_plain_composition_at_odd_shapes(words: int, patches: int, dim: int) -> None:
    u, x, target, weight = draw(2, 3, words, patches, dim, dtype=torch.float32)
    truth = plain(u.double(), x.double(), target.double(), weight.double())
    found = interaction_attention(u, x, target, weight)
    names = ("z", "kl", "du", "dx")
    pairs = zip((*found, *gradients(found, (u, x))), (*truth, *gradients(truth, (u, x))), names, strict=True)
    for a, b, name in pairs:
        assert_close(a, b, torch.float32, name)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_each_dtype_keeps_its_tolerance_to_float64(dtype: torch.dtype) -> None:
    u, x, target, weight = draw(2, 3, 16, 196, 48, dtype=dtype)
    u64, x64 = (a.detach().double().requires_grad_() for a in (u, x))
    truth = plain(u64, x64, target.double(), weight.double())
    found = interaction_attention(u, x, target, weight)
    du, dx = gradients(found, (u, x))
    assert found[0].dtype == du.dtype == dx.dtype == dtype
    # Sums over patches are never held in the narrow dtype, so kl is as exact as fp32.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert found[1].dtype == wide
    assert_close(found[0], truth[0], dtype, "z")
    assert_close(found[1], truth[1], wide, "kl")
    for a, b, name in zip((du, dx), gradients(truth, (u64, x64)), ("du", "dx"), strict=True):
        assert_close(a, b, dtype, name)


def test_autocast_does_not_narrow_the_scores() -> None:
    u, x, target, weight = draw(dtype=torch.float32)
    truth = interaction_attention(u, x, target, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = interaction_attention(u, x, target, weight)
        maps = attention_map(u, x)
    assert torch.equal(found[0], truth[0])
    assert torch.equal(found[1], truth[1])
    assert torch.equal(maps, attention_map(u, x))
    for a, b in zip(gradients(found, (u, x)), gradients(truth, (u, x)), strict=True):
        assert torch.equal(a, b)


def test_strided_inputs_give_the_same() -> None:
    u, x, target, weight = (a.detach() for a in draw())
    strided = [
        u.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        x.mT.contiguous().mT,
        torch.stack([target, target], -1)[..., 0],
        weight.T.contiguous().T,
    ]
    assert not any(a.is_contiguous() for a in strided)
    for a, b in zip(interaction_attention(*strided), interaction_attention(u, x, target, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_inputs_are_left_as_they_were() -> None:
    arguments = [a.detach() for a in draw(dtype=torch.float32)]
    arguments[3][0, 0] = 0.0
    before = [a.clone() for a in arguments]
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[:, 3] = True
    interaction_attention(*arguments, key_padding_mask=mask)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


def test_without_target_kl_is_zeros_and_z_unchanged() -> None:
    u, x, target, weight = draw()
    z, kl = interaction_attention(u, x)
    assert torch.equal(kl, torch.zeros(2, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(z, interaction_attention(u, x, target, weight)[0], rtol=0, atol=1e-14)


def test_without_row_weight_every_row_counts_one() -> None:
    u, x, target, weight = draw()
    found = interaction_attention(u, x, target)[1]
    torch.testing.assert_close(found, interaction_attention(u, x, target, torch.ones_like(weight))[1])


def test_attention_map_is_what_z_was_read_with() -> None:
    u, x, _, _ = draw()
    maps = attention_map(u, x)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(maps @ x[:, None], interaction_attention(u, x)[0])


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_layer_norm_within_is_layer_norm_before(eps: float) -> None:
    u, x, target, weight = draw()
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 2:4] = True
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    found = interaction_attention(u, x, target, weight, key_padding_mask=mask, layer_norm_eps=eps)
    truth = interaction_attention(u, normed, target, weight, key_padding_mask=mask)
    for a, b in zip((*found, *gradients(found, (u, x))), (*truth, *gradients(truth, (u, x))), strict=True):
        torch.testing.assert_close(a, b)
    maps = attention_map(u, x, key_padding_mask=mask, layer_norm_eps=eps)
    torch.testing.assert_close(maps, attention_map(u, normed, key_padding_mask=mask))


# --- properties of the divergence --------------------------------------------------------------------------

sizes = st.integers(1, 6)
seeds = st.integers(0, 2**31)


@settings(max_examples=30, deadline=None)
@given(words=sizes, patches=sizes, dim=sizes, seed=seeds, scale=st.floats(0.0, 30.0))
def test_kl_is_never_negative(words: int, patches: int, dim: int, seed: int, scale: float) -> None:
    u, x, target, weight = draw(2, 2, words, patches, dim, seed=seed)
    _, kl = interaction_attention(u * scale, x, target, weight)
    assert torch.isfinite(kl).all()
    assert kl.min() >= -1e-12


@settings(max_examples=30, deadline=None)
@given(words=sizes, patches=sizes, dim=sizes, seed=seeds)
def test_kl_is_zero_where_the_target_is_the_attention(words: int, patches: int, dim: int, seed: int) -> None:
    u, x, _, weight = draw(2, 1, words, patches, dim, seed=seed)
    own = attention_map(u, x)[:, 0].detach()
    _, kl = interaction_attention(u, x, own, weight)
    torch.testing.assert_close(kl, torch.zeros_like(kl), rtol=0, atol=1e-12)
    du, dx = torch.autograd.grad(kl.sum(), (u, x))
    torch.testing.assert_close(du, torch.zeros_like(du), rtol=0, atol=1e-12)
    torch.testing.assert_close(dx, torch.zeros_like(dx), rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(words=sizes, patches=sizes, seed=seeds, shift=st.floats(-1e4, 1e4))
def test_a_constant_added_to_a_row_of_scores_changes_nothing(words: int, patches: int, seed: int, shift: float) -> None:
    u, x, target, weight = (a.detach() for a in draw(words=words, patches=patches, seed=seed))
    # A channel that is 1 in every patch adds its own value in u to the whole row.
    ones = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    plain_u = torch.cat([u, torch.zeros_like(u[..., :1])], -1)
    shifted_u = torch.cat([u, torch.full_like(u[..., :1], shift)], -1)
    truth = interaction_attention(plain_u, ones, target, weight)
    for a, b in zip(interaction_attention(shifted_u, ones, target, weight), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(patches=sizes, seed=seeds)
def test_the_order_of_patches_does_not_matter(patches: int, seed: int) -> None:
    u, x, target, weight = draw(patches=patches, seed=seed)
    order = torch.randperm(patches, generator=torch.Generator().manual_seed(seed))
    truth = interaction_attention(u, x, target, weight)
    found = interaction_attention(u, x[:, order], target[..., order], weight)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for a, b in zip(gradients(found, (u, x)), gradients(truth, (u, x)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.0, 100.0), seed=seeds)
def test_kl_is_linear_in_row_weight(factor: float, seed: int) -> None:
    u, x, target, weight = draw(seed=seed)
    _, kl = interaction_attention(u, x, target, weight)
    _, scaled = interaction_attention(u, x, target, weight * factor)
    torch.testing.assert_close(scaled, kl * factor, rtol=1e-12, atol=1e-12)


# --- rows and patches that do not count --------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -1.0])
def test_rows_without_weight_are_exactly_silent(garbage: float) -> None:
    u, x, target, weight = draw(dtype=torch.float32)
    weight[0, 1] = 0.0
    weight[1] = 0.0
    clean = interaction_attention(u, x, target, weight)
    dirty_target = target.masked_fill((weight == 0)[..., None], garbage)
    _, kl = interaction_attention(u, x, dirty_target, weight)
    assert torch.equal(kl, clean[1])
    assert (kl[0, :, 1] == 0).all()
    assert (kl[1] == 0).all()
    du, dx = torch.autograd.grad(kl.sum(), (u, x))
    assert (du[0, :, 1] == 0).all()
    assert (du[1] == 0).all()
    assert (dx[1] == 0).all()
    assert torch.isfinite(du).all()
    assert torch.isfinite(dx).all()
    assert (dx[0] != 0).any()


def test_a_scale_of_nan_in_a_row_without_weight_is_silent() -> None:
    u, x, target, weight = draw(dtype=torch.float32)
    codes = (target * 255).to(torch.uint8)
    scale = torch.ones_like(weight)
    weight[0, 1] = 0.0
    scale[0, 1] = float("nan")
    _, kl = interaction_attention(u, x, codes, weight, target_scale=scale)
    assert torch.isfinite(kl).all()
    assert (kl[0, :, 1] == 0).all()


def test_rows_with_an_empty_target_are_exactly_silent() -> None:
    u, x, target, weight = draw(dtype=torch.float32)
    target[0, 2] = 0.0
    target[1] = 0.0
    _, kl = interaction_attention(u, x, target, weight)
    assert (kl[0, :, 2] == 0).all()
    assert (kl[1] == 0).all()
    du, dx = torch.autograd.grad(kl.sum(), (u, x))
    assert (du[0, :, 2] == 0).all()
    assert (du[1] == 0).all()
    assert (dx[1] == 0).all()


@pytest.mark.parametrize("eps", [None, 1e-5])
def test_ignored_patches_are_as_if_they_were_not_there(eps: float | None) -> None:
    u, x, target, weight = draw()
    mask = torch.tensor([[False, False, True, False, True, False, True]]).expand(2, -1)
    keep = ~mask[0]
    dirty_x = x.detach().masked_fill(mask[..., None], float("nan")).requires_grad_()
    dirty_target = target.masked_fill(mask[:, None], float("nan"))
    found = interaction_attention(u, dirty_x, dirty_target, weight, key_padding_mask=mask, layer_norm_eps=eps)
    truth = interaction_attention(u, x[:, keep], target[..., keep], weight, layer_norm_eps=eps)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b)
    (du, dx), (true_du, true_dx) = gradients(found, (u, dirty_x)), gradients(truth, (u, x))
    torch.testing.assert_close(du, true_du)
    torch.testing.assert_close(dx, true_dx)
    assert (dx[:, ~keep] == 0).all()
    assert (attention_map(u, dirty_x, key_padding_mask=mask)[..., ~keep] == 0).all()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_sample_with_every_patch_ignored_gives_zeros(dtype: torch.dtype) -> None:
    u, x, target, weight = draw(dtype=dtype)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1] = True
    z, kl = interaction_attention(u, x, target, weight, key_padding_mask=mask)
    assert (z[1] == 0).all()
    assert (kl[1] == 0).all()
    assert (z[0] != 0).any()
    du, dx = gradients((z, kl), (u, x))
    assert (du[1] == 0).all()
    assert (dx[1] == 0).all()
    assert (attention_map(u, x, key_padding_mask=mask)[1] == 0).all()


# --- stored targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("companding", ["linear", "sqrt"])
def test_codes_with_scale_equal_their_decoded_maps(companding: Any) -> None:
    u, x, target, weight = draw(patches=49, dtype=torch.float32)
    scale = target.amax(-1).to(torch.float16)
    share = target / target.amax(-1, keepdim=True)
    codes = (share.sqrt() if companding == "sqrt" else share).mul(255).round().to(torch.uint8)
    fraction = codes.float() / 255
    decoded = scale.float()[..., None] * (fraction**2 if companding == "sqrt" else fraction)
    found = interaction_attention(u, x, codes, weight, target_scale=scale, companding=companding)
    truth = interaction_attention(u, x, decoded, weight)
    for a, b in zip((*found, *gradients(found, (u, x))), (*truth, *gradients(truth, (u, x))), strict=True):
        torch.testing.assert_close(a, b)


def test_sqrt_is_the_default_curve() -> None:
    u, x, target, weight = draw(dtype=torch.float32)
    codes, scale = (target * 255).to(torch.uint8), torch.ones_like(weight)
    found = interaction_attention(u, x, codes, weight, target_scale=scale)[1]
    named = interaction_attention(u, x, codes, weight, target_scale=scale, companding="sqrt")[1]
    assert torch.equal(found, named)


# --- the public boundary -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 4, 5)}, r"u must be \[B, H, M, D\], got shape \[2, 4, 5\]"),
        ({"x": torch.zeros(7, 5)}, r"x must be \[B, N, D\], got shape \[7, 5\]"),
        ({"x": torch.zeros(3, 7, 5)}, r"x must be \[B, N, D\] with B=2 and D=5"),
        ({"x": torch.zeros(2, 7, 6)}, r"x must be \[B, N, D\] with B=2 and D=5"),
        ({"x": torch.zeros(2, 0, 5)}, r"x must hold at least one patch"),
        ({"u": torch.zeros(2, 3, 4, 5, dtype=torch.int64)}, r"u must be float16, .* got torch.int64"),
        ({"x": torch.zeros(2, 7, 5, dtype=torch.bfloat16)}, r"x must be torch.float32 .* got torch.bfloat16"),
        ({"x": torch.zeros(2, 7, 5, device="meta")}, r"x must be on cpu, got one on meta"),
        ({"target": torch.zeros(2, 3, 4, 7)}, r"target must be \[B, M, N\] = \[2, 4, 7\], got"),
        ({"target": torch.zeros(2, 4, 7, dtype=torch.int32)}, r"target must be uint8 or floating point, got"),
        ({"target": torch.zeros(2, 4, 7, requires_grad=True)}, r"target must be a constant, got"),
        ({"target": torch.zeros(2, 4, 7, dtype=torch.uint8)}, r"target_scale must be given \[B, M\]"),
        ({"row_weight": torch.zeros(2, 3, 4)}, r"row_weight must be \[B, M\] = \[2, 4\], got"),
        ({"row_weight": torch.ones(2, 4, dtype=torch.bool)}, r"row_weight must be floating point, got"),
        ({"row_weight": torch.ones(2, 4, requires_grad=True)}, r"row_weight must be a constant, got"),
        ({"target_scale": torch.ones(2, 4)}, r"target_scale must be None unless target is uint8, got"),
        ({"target_scale": torch.ones(2, 4), "target": None}, r"target_scale must be None .* no target"),
        ({"layer_norm_eps": 0.0}, r"layer_norm_eps must be above 0, or None for no layer norm, got 0.0"),
        ({"layer_norm_eps": float("nan")}, r"layer_norm_eps must be above 0, .* got nan"),
        ({"companding": "log"}, r'companding must be "linear" or "sqrt", got \'log\''),
        ({"key_padding_mask": torch.zeros(2, 6, dtype=torch.bool)}, r"key_padding_mask must be \[B, N\] = "),
        ({"key_padding_mask": torch.zeros(2, 7)}, r"key_padding_mask must be bool \(True = ignore\), got"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    u, x, target, weight = (a.detach() for a in draw(dtype=torch.float32))
    arguments: dict[str, Any] = {"u": u, "x": x, "target": target, "row_weight": weight} | change
    with pytest.raises(ValueError, match=message):
        interaction_attention(**arguments)


@pytest.mark.parametrize(
    "scale", [torch.ones(2, 3), torch.ones(2, 4, dtype=torch.int32), torch.ones(2, 4, requires_grad=True)]
)
def test_a_scale_that_does_not_fit_is_refused(scale: Tensor) -> None:
    u, x, _, _ = draw(dtype=torch.float32)
    with pytest.raises(ValueError, match="target_scale must be"):
        interaction_attention(u, x, torch.zeros(2, 4, 7, dtype=torch.uint8), target_scale=scale)

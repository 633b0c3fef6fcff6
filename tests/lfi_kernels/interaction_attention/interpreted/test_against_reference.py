"""The fused kernels against the reference in float64: outputs, gradients, and the edges of the contract."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_kernels.interaction_attention import dispatch, reference, triton_backward, triton_forward
from lfi_kernels.interaction_attention.blocks import Blocks, Problem

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
F16, F32 = torch.float16, torch.float32
# dtype -> bound on the largest error and on its RMS, both as a share of the truth's largest value (1 at least).
TOLERANCES = {F16: (2e-3, 3e-4), torch.bfloat16: (1.6e-2, 3e-3), F32: (8e-6, 8e-7)}
DTYPES = [F16, F32] + ([torch.bfloat16] if DEVICE == "cuda" else [])  # the interpreter's products of bf16 are wrong

Case = dict[str, Any]


@pytest.fixture(autouse=True)
def fused_and_poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernels are asked for, and memory that they allocate holds NaN until they write it."""
    monkeypatch.setenv("LFI_KERNELS", "triton")
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(params=["one program", "several programs"])
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles of a sample's patches are taken in turn, or by programs side by side."""
    for module in (triton_forward, triton_backward):
        monkeypatch.setattr(module, "processors", lambda _: {"one program": 1, "several programs": 6}[request.param])


def make(
    heads: int,
    words: int,
    patches: int,
    dim: int,
    *,
    batch: int = 2,
    dtype: torch.dtype = F32,
    kind: str = "u8",
    masked: bool = False,
    eps: float | None = None,
    seed: int = 0,
) -> Case:
    """Arguments of the op: scores with a spread of 2, peaked maps, weights in (0, 1], some patches ignored.

    With layer norm, `eps`, patches of deviations from 0.1 to 10 around means of the same size.
    """
    g = torch.Generator().manual_seed(seed)
    u = 2 * torch.randn(batch, heads, words, dim, generator=g) / dim**0.5
    x = torch.randn(batch, patches, dim, generator=g)
    if eps is not None:
        x = (x + torch.randn(batch, patches, 1, generator=g)) * 10 ** (
            2 * torch.rand(batch, patches, 1, generator=g) - 1
        )
    target: Tensor | None = (2 * torch.randn(batch, words, patches, generator=g)).softmax(-1)
    assert target is not None
    scale = None
    if kind == "u8":
        scale = target.amax(-1)
        target = (target / scale[..., None]).sqrt().mul(255).round().to(torch.uint8)
        scale = scale.half()
    elif kind == "none":
        target = None
    else:
        target = target.to({"f16": F16, "f32": F32}[kind])
    mask = torch.rand(batch, patches, generator=g) < 0.3 if masked else None
    if mask is not None:
        mask[:, 0] = False
    case = {
        "u": u.to(dtype),
        "x": x.to(dtype),
        "target": target,
        "row_weight": 1 - torch.rand(batch, words, generator=g),
        "target_scale": scale,
        "key_padding_mask": mask,
    }
    return {name: None if value is None else value.to(DEVICE) for name, value in case.items()} | {"layer_norm_eps": eps}


def run(op: Callable[..., tuple[Tensor, Tensor]], case: Case, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """z, kl and the gradients of a random projection of both, so that no two errors cancel."""
    u, x = (case[name].detach().to(dtype or case[name].dtype).requires_grad_() for name in ("u", "x"))
    z, kl = op(u, x, **{name: value for name, value in case.items() if name not in ("u", "x")})
    g = torch.Generator().manual_seed(1)
    dz, dkl = (torch.randn(out.shape, generator=g).to(out.device, torch.float64) for out in (z, kl))
    if case["target"] is None:
        dkl = torch.zeros_like(dkl)
    du, dx = torch.autograd.grad((z.double() * dz).sum() + (kl.double() * dkl).sum(), (u, x))
    return {"z": z.detach(), "kl": kl.detach(), "du": du, "dx": dx}


def assert_close(found: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype) -> None:
    dim = truth["z"].shape[3]
    slack = max(1.0, dim / 192) if dtype == F32 else 1.0  # fp32 rounds once a channel that a sum runs over
    for name in truth:
        # kl is as exact as fp32 in every dtype.
        max_bound, rms_bound = (slack * each for each in TOLERANCES[F32 if name == "kl" else dtype])
        error = (found[name].double() - truth[name].double()).abs()
        assert torch.isfinite(error).all(), f"{name}: not finite at {(~torch.isfinite(error)).nonzero()[0].tolist()}"
        size = truth[name].abs().max().clamp(min=1.0)
        worst = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
        assert error.max() <= max_bound * size, f"{name}: max error {error.max():.2e} at {worst}, truth to {size:.2e}"
        rms = error.square().mean().sqrt()
        assert rms <= rms_bound * size, f"{name}: RMS error {rms:.2e}, truth to {size:.2e}"


def check(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    found = run(dispatch.interaction_attention, case)
    assert found["z"].dtype == found["du"].dtype == found["dx"].dtype == dtype
    assert found["kl"].dtype == F32
    assert_close(found, run(reference.interaction_attention, case, torch.float64), dtype)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "words", "patches", "dim", "kind", "masked"),
    [
        (1, 1, 1, 32, "u8", False),
        (3, 1, 1, 48, "f16", False),
        (2, 3, 49, 32, "f32", True),
        (3, 3, 49, 192, "u8", True),
        (1, 16, 196, 48, "u8", True),
        (4, 16, 196, 192, "f16", False),
        (2, 16, 197, 48, "none", True),
        (3, 17, 196, 32, "f16", True),
        (1, 17, 197, 48, "f32", False),
        (2, 17, 257, 32, "u8", False),
        (3, 16, 257, 48, "f16", True),
        (4, 17, 49, 32, "u8", False),
        (1, 3, 520, 80, "u8", True),
    ],
)
def test_outputs_and_gradients(
    heads: int, words: int, patches: int, dim: int, kind: str, masked: bool, dtype: torch.dtype
) -> None:
    check(make(heads, words, patches, dim, dtype=dtype, kind=kind, masked=masked), dtype)


VITS = [(768, 196, 16), (1024, 256, 32), (1280, 1024, 16), (384, 4096, 64)] if DEVICE == "cuda" else []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("dim", "patches", "words"), [(192, 196, 16), *VITS] if DEVICE == "cuda" else [(32, 2049, 64), (1280, 60, 2)]
)
def test_the_ends_of_what_is_accepted(dim: int, patches: int, words: int, dtype: torch.dtype) -> None:
    batch = 150 if DEVICE == "cuda" else 1  # more than there are processors
    check(make(4 if DEVICE == "cuda" else 1, words, patches, dim, batch=batch, dtype=dtype, eps=1e-5), dtype)


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "words", "patches", "dim", "kind", "masked"),
    [
        (3, 1, 3, 48, "f16", False),
        (2, 3, 49, 192, "u8", True),
        (4, 16, 196, 48, "u8", False),
        (2, 17, 257, 32, "u8", True),
        (1, 3, 520, 80, "none", True),
        (2, 3, 1100, 32, "u8", True),
    ],
)
def test_layer_norm_is_part_of_it(
    heads: int, words: int, patches: int, dim: int, kind: str, masked: bool, dtype: torch.dtype
) -> None:
    check(make(heads, words, patches, dim, dtype=dtype, kind=kind, masked=masked, eps=1e-5), dtype)


def test_layer_norm_bears_features_far_from_zero() -> None:
    case = make(2, 3, 49, 64, eps=1e-5)
    case["x"] = case["x"] + 100.0  # a thousand deviations of the quietest patch
    found, truth = dispatch.interaction_attention(**case), run(reference.interaction_attention, case, torch.float64)
    for a, name in zip(found, ("z", "kl"), strict=True):
        assert (a - truth[name]).abs().max() <= 3e-3
    case["x"][..., 0] = -100.0  # the channel that the sums start from lies far from all others
    found, truth = dispatch.interaction_attention(**case), run(reference.interaction_attention, case, torch.float64)
    assert (found[1] - truth["kl"]).abs().max() <= 3e-3


def test_fp16_layer_norm_keeps_what_large_features_make_small() -> None:
    case = make(2, 3, 196, 48, dtype=F16, eps=1e-5)
    case["x"] = torch.randn(case["x"].shape, generator=torch.Generator().manual_seed(3)).to(case["x"]) * 3e3
    check(case, F16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", range(9))
def test_every_candidate_of_the_tuner_is_right(place: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Blocks] = []

    def launch(problem: Problem, _: torch.device, run: Callable[[Blocks], tuple[Tensor, Tensor]]) -> Any:
        candidates = problem.candidates()
        tried.append(candidates[place % len(candidates)])
        return run(tried[-1])

    for module in (triton_forward, triton_backward):
        monkeypatch.setattr(module, "launch", launch)
    check(make(9, 16, 270, 70, batch=1, dtype=dtype, masked=True, eps=1e-5), dtype)
    assert len(tried) == 2


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("patches", [257, 1100])
def test_several_tiles_of_patches(patches: int, dtype: torch.dtype) -> None:
    check(make(4, 16, patches, 48, dtype=dtype, masked=True), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_rows_than_a_tile_of_the_backward_pass(dtype: torch.dtype) -> None:
    heads, words = 5, 60
    assert heads * words > 2 * 128  # the most that any tile holds, twice
    for eps in (None, 1e-5):
        check(make(heads, words, 40, 32, batch=1, dtype=dtype, eps=eps), dtype)


def test_linear_codes() -> None:
    check(make(2, 3, 49, 32) | {"companding": "linear"}, F32)


def test_large_scores_cost_no_digits() -> None:
    case = make(2, 3, 300, 32)
    case["x"][..., 0], case["u"][..., 0] = 1.0, 4096.0  # adds 4096 to every score
    truth = run(reference.interaction_attention, case, torch.float64)
    found = dispatch.interaction_attention(**case)
    assert (found[1] - truth["kl"]).abs().max() <= 2e-3  # half an ulp of a score is 2.4e-4
    assert (found[0] - truth["z"]).abs().max() <= 2e-3


@pytest.mark.parametrize("patches", [49, 300])
@pytest.mark.parametrize("kind", ["u8", "f32", "f16"])
def test_rows_without_weight_are_exactly_silent_whatever_they_hold(kind: str, patches: int) -> None:
    case = make(2, 17, patches, 32, kind=kind)
    case["row_weight"][0, 1] = 0.0
    case["row_weight"][1] = 0.0
    clean = run(dispatch.interaction_attention, case)
    silent = case["row_weight"] == 0
    if kind == "u8":
        case["target_scale"] = case["target_scale"].masked_fill(silent, float("nan"))
    else:
        case["target"] = case["target"].masked_fill(silent[..., None], float("nan"))
    dirty = run(dispatch.interaction_attention, case)
    assert all(torch.equal(dirty[name], clean[name]) for name in clean)
    assert (dirty["kl"][0, :, 1] == 0).all()
    assert (dirty["kl"][1] == 0).all()
    assert (dirty["kl"][0] != 0).any()
    u, x = (case[name].requires_grad_() for name in ("u", "x"))
    du, dx = torch.autograd.grad(dispatch.interaction_attention(**case)[1].sum(), (u, x))
    assert (du[0, :, 1] == 0).all()
    assert (du[1] == 0).all()
    assert (dx[1] == 0).all()
    assert (dx[0] != 0).any()


@pytest.mark.parametrize("patches", [49, 300])
def test_rows_with_an_empty_target_are_exactly_silent(patches: int) -> None:
    case = make(2, 3, patches, 32, kind="f32")
    case["target"][0, 2] = 0.0
    case["target"][1] = 0.0
    u, x = (case[name].requires_grad_() for name in ("u", "x"))
    kl = dispatch.interaction_attention(**case)[1]
    assert (kl[0, :, 2] == 0).all()
    assert (kl[1] == 0).all()
    du, dx = torch.autograd.grad(kl.sum(), (u, x))
    assert (du[0, :, 2] == 0).all()
    assert (du[1] == 0).all()
    assert (dx[1] == 0).all()
    assert (dx[0] != 0).any()


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("patches", "eps"), [(49, None), (300, None), (300, 1e-5)])
def test_ignored_patches_may_hold_nan_and_empty_samples_give_zeros(
    patches: int, eps: float | None, dtype: torch.dtype
) -> None:
    case = make(2, 3, patches, 32, kind="f16", masked=True, dtype=dtype, eps=eps)
    mask = case["key_padding_mask"]
    mask[0, patches // 2 :] = True  # with 300 patches, a whole tile without any
    mask[1] = True
    clean = run(dispatch.interaction_attention, case)
    case["x"] = case["x"].masked_fill(mask[..., None], float("nan"))
    case["target"] = case["target"].masked_fill(mask[:, None], float("nan"))
    dirty = check(case, dtype)
    assert all(torch.equal(dirty[name], clean[name]) for name in clean)
    assert all((dirty[name][1] == 0).all() for name in dirty)
    assert (dirty["dx"][0][mask[0]] == 0).all()


def test_strided_inputs_give_the_same_bits() -> None:
    case = make(3, 4, 49, 48, masked=True)
    strided = case | {
        "u": case["u"].transpose(0, 1).contiguous().transpose(0, 1),
        "x": case["x"].mT.contiguous().mT,
        "target": torch.stack([case["target"]] * 2, -1)[..., 0],
        "row_weight": case["row_weight"].T.contiguous().T,
        "target_scale": case["target_scale"].T.contiguous().T,
        "key_padding_mask": case["key_padding_mask"].T.contiguous().T,
    }
    assert not any(value.is_contiguous() for value in strided.values() if isinstance(value, Tensor))
    found, truth = run(dispatch.interaction_attention, strided), run(dispatch.interaction_attention, case)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_gradients_that_are_expanded_are_read_right() -> None:
    case = make(2, 3, 49, 32)
    u, x = (case[name].requires_grad_() for name in ("u", "x"))
    grads = []
    for op in (dispatch.interaction_attention, reference.interaction_attention):
        z, kl = op(**case)
        grads.append(torch.autograd.grad(z.sum() + kl.sum(), (u, x)))  # gradients with strides of 0
    for found, truth in zip(*grads, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


def test_the_same_bits_every_time() -> None:
    case = make(4, 16, 300, 48, masked=True)
    first, second = (run(dispatch.interaction_attention, case) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_row_weight_every_row_counts_one() -> None:
    case = make(2, 3, 49, 32)
    ones = torch.ones_like(case["row_weight"])
    found = run(dispatch.interaction_attention, case | {"row_weight": None})
    truth = run(dispatch.interaction_attention, case | {"row_weight": ones})
    assert all(torch.equal(found[name], truth[name]) for name in truth)


@pytest.mark.parametrize("patches", [196, 700])
def test_no_map_is_ever_in_memory(patches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(4, 16, patches, 32, batch=1, dtype=F16)
    sizes: list[int] = []
    empty = torch.empty

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch, "empty", counted)
    run(dispatch.interaction_attention, case)
    assert sizes
    assert max(sizes) <= max(64, patches) * 32  # z and u, or dx
    assert max(sizes) < 64 * patches


def test_no_samples_and_no_words() -> None:
    for batch, words in ((0, 3), (2, 0)):
        case = make(2, 3, 7, 32, batch=2, kind="f32")
        case = {name: value[:batch] if isinstance(value, Tensor) else value for name, value in case.items()}
        case |= {"u": case["u"][:, :, :words], "target": case["target"][:, :words]}
        case |= {"row_weight": case["row_weight"][:, :words]}
        found = run(dispatch.interaction_attention, case)
        assert found["z"].shape == (batch, 2, words, 32)
        assert (found["dx"] == 0).all()

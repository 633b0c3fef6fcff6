"""The fused kernels against the reference in float64: outputs, gradients, and the edges of the contract."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_kernels.interaction_attention import reference, triton_fused, triton_project
from lfi_kernels.interaction_attention.dispatch import projected_attention
from lfi_kernels.interaction_attention.tiles import Problem, Tile

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
F16, F32 = torch.float16, torch.float32
# dtype -> bound on ||found - truth|| / ||truth|| of every output and gradient.
TOLERANCES = {F16: 1e-3, torch.bfloat16: 8e-3, F32: 2e-6}
DTYPES = [F16, F32] + ([torch.bfloat16] if DEVICE == "cuda" else [])  # the interpreter's products of bf16 are wrong
NAMES = ("o", "kl", "dq", "dx", "dw")
LONG = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("LFI_LONG_TESTS") != "1", reason="slow if interpreted: LFI_LONG_TESTS=1 runs it"
)
MINUTE = pytest.mark.gpu_minute
"""Few cases, each of other kernels: compiling takes the time on a GPU, some 40 kernels in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Leaves q, x and w, the arguments that are constant, and those that are no tensors."""

    leaves: tuple[Tensor, Tensor, Tensor]
    target: Tensor | None
    row_weight: Tensor | None
    target_scale: Tensor | None
    mask: Tensor | None
    row_batch: Tensor | None
    row_query: Tensor | None
    heads: int
    companding: str
    eps: float | None

    def arguments(self) -> tuple[Any, ...]:
        """After the leaves."""
        tensors = self.target, self.row_weight, self.target_scale, self.mask, self.row_batch, self.row_query
        return *tensors, self.heads, self.companding, self.eps


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the launchers allocate holds NaN until a kernel writes it."""
    empty = torch.Tensor.new_empty

    def filled(like: Tensor, *size: Any, **kwargs: Any) -> Tensor:
        made = empty(like, *size, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)


def make(
    words: int,
    patches: int,
    dim: int,
    *,
    batch: int = 2,
    heads: int = 4,
    query_dim: int = 64,
    dtype: torch.dtype = F32,
    kind: str = "u8",
    rows: tuple[tuple[int, int], ...] | None = None,
    masked: bool = False,
    eps: float | None = 1e-5,
) -> Case:
    """Scores with a spread of about 1, peaked maps, weights in (0, 1], patches of different size and mean.

    Args:
        rows: sample and query of the maps; None: every query has one.
    """
    g = torch.Generator().manual_seed(0)
    q = torch.randn(batch, words, query_dim, generator=g) * (heads / query_dim) ** 0.5
    x = torch.randn(batch, patches, dim, generator=g)
    w = torch.randn(dim, 2 * query_dim, generator=g) / dim**0.5
    if eps is not None:
        x = (x + torch.randn(batch, patches, 1, generator=g)) * (0.5 + torch.rand(batch, patches, 1, generator=g))
        w = w - w.mean(0)
    shape = (batch, words) if rows is None else (len(rows),)
    maps = (2 * torch.randn(*shape, patches, generator=g)).softmax(-1)
    scale = target = None
    if kind == "u8":
        scale = maps.amax(-1)
        target = (maps / scale[..., None]).sqrt().mul(255).round().to(torch.uint8)
        scale = scale.half()
    elif kind != "none":
        target = maps.to({"f16": F16, "f32": F32, "f64": torch.float64}[kind])
    mask = torch.rand(batch, patches, generator=g) < 0.3 if masked else None
    if mask is not None:
        mask[:, 0] = False
    index = None if rows is None else torch.tensor(rows).to(DEVICE)
    put = [None if each is None else each.to(DEVICE) for each in (target, scale, mask)]
    return Case(
        leaves=tuple(each.to(DEVICE, dtype) for each in (q, x, w)),  # type: ignore[arg-type]
        target=put[0],
        row_weight=(1 - torch.rand(shape, generator=g)).to(DEVICE),
        target_scale=put[1],
        mask=put[2],
        row_batch=None if index is None else index[:, 0],
        row_query=None if index is None else index[:, 1],
        heads=heads,
        companding="sqrt",
        eps=eps,
    )


def run(op: Callable[..., Any], case: Case, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """o, kl and the gradients of a random projection of both, so that no two errors cancel."""
    leaves = [each.detach().to(dtype or each.dtype).requires_grad_() for each in case.leaves]
    o, kl, *_ = op(*leaves, *case.arguments())
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(out.shape, generator=g).to(out) for out in (o, kl)]
    pairs = [(out, by) for out, by in zip((o, kl), upstream, strict=True) if out.requires_grad]
    gradients = torch.autograd.grad([out for out, _ in pairs], leaves, [by for _, by in pairs])
    found = dict(zip(NAMES, (o.detach(), kl.detach(), *gradients), strict=True))
    if case.eps is not None:
        found["dw"] = found["dw"] - found["dw"].mean(0)  # it is right up to a constant by column
    return found


def assert_close(found: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype, slack: float = 1.0) -> None:
    for name, exact in truth.items():
        if not exact.numel():
            continue
        assert torch.isfinite(found[name]).all(), f"{name}: not finite"
        bound = slack * TOLERANCES[dtype]
        error = float((found[name].double() - exact).norm() / exact.norm().clamp(min=1e-30))
        assert error <= bound or not exact.any(), f"{name}: error {error:.2e}, allowed {bound:.2e}"
        worst = float((found[name].double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30))
        assert worst <= 8 * bound or not exact.any(), f"{name}: largest error {worst:.2e}, allowed {8 * bound:.2e}"


def check(case: Case, slack: float = 1.0) -> dict[str, Tensor]:
    dtype = case.leaves[0].dtype
    found = run(projected_attention, case)
    assert found["o"].dtype == found["dq"].dtype == found["dx"].dtype == found["dw"].dtype == dtype
    assert found["kl"].dtype == F32
    assert_close(found, run(reference.projected_attention, case, torch.float64), dtype, slack)
    return found


FEW = ((0, 1), (0, 4), (1, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("words", "patches", "dim", "told"),
    [
        (1, 1, 32, {}),
        (3, 49, 48, {"masked": True, "kind": "f32", "heads": 3, "query_dim": 96}),  # odd heads, columns that do not fit
        pytest.param(16, 70, 64, {"kind": "f16"}, marks=MINUTE),
        (17, 33, 40, {"masked": True, "heads": 1, "query_dim": 16}),
        (5, 20, 32, {"kind": "none", "masked": True}),
        (5, 37, 48, {"rows": FEW, "masked": True}),
        (70, 37, 32, {"batch": 1, "masked": True}),  # two blocks of queries
        # a sample without maps
        pytest.param(70, 20, 32, {"rows": ((0, 3), (0, 69)), "kind": "f16", "batch": 2}, marks=MINUTE),
        (70, 20, 32, {"kind": "none", "batch": 1, "heads": 2, "query_dim": 80}),
        (4, 130, 70, {"eps": None, "masked": True, "kind": "f64"}),
    ],
)
def test_outputs_and_gradients(words: int, patches: int, dim: int, told: dict[str, Any], dtype: torch.dtype) -> None:
    check(make(words, patches, dim, dtype=dtype, **told))


VITS = [(768, 196, 16), (1024, 256, 32), (384, 1024, 80), (384, 196, 1000)] if DEVICE == "cuda" else []


@LONG
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "patches", "words"), [(192, 196, 16), *VITS])
def test_shapes_of_students(dim: int, patches: int, words: int, dtype: torch.dtype) -> None:
    batch = 150 if DEVICE == "cuda" else 1  # more than there are processors
    check(make(words, patches, dim, batch=batch, query_dim=128, dtype=dtype), slack=2.0)


@pytest.mark.parametrize("dtype", [F16, F32])
@pytest.mark.parametrize("words", [5, 70])
@pytest.mark.parametrize("place", [-1, *(pytest.param(place, marks=LONG) for place in range(6))])
def test_every_tile_is_right(place: int, words: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of both lists, one place of each after the other; the last is the one that is least like the usual."""
    tried: list[Tile] = []

    def launch(problem: Problem, _: torch.device, run: Callable[[Tile], Any]) -> Any:
        candidates = problem.candidates()
        tried.append(candidates[place % len(candidates)])
        return run(tried[-1])

    for module in (triton_fused, triton_project):
        monkeypatch.setattr(module, "launch", launch)
    check(make(words, 20, 40, batch=1, heads=2, query_dim=32, dtype=dtype, masked=True))
    assert len(tried) == 5


def test_linear_codes() -> None:
    check(replace(make(3, 20, 32), companding="linear"))


def test_layer_norm_bears_features_far_from_zero() -> None:
    case = make(3, 20, 64)
    q, x, w = case.leaves
    check(replace(case, leaves=(q, x + 20.0, w)), slack=20.0)


def test_large_scores_cost_no_digits() -> None:
    case = make(3, 40, 32)
    q, x, w = case.leaves
    case = replace(case, leaves=(300 * q, x, w))
    kl = projected_attention(*case.leaves, *case.arguments())[1]
    truth = reference.projected_attention(*(each.double() for each in case.leaves), *case.arguments())[1]
    assert truth.max() > 100
    assert (kl - truth).abs().max() <= 1e-5 * truth.max()


@pytest.mark.parametrize("rows", [None, FEW])
@pytest.mark.parametrize("kind", ["u8", "f16"])
def test_rows_without_weight_are_exactly_silent_whatever_they_hold(kind: str, rows: Any) -> None:
    case = make(5, 20, 32, kind=kind, rows=rows)
    assert case.row_weight is not None
    case.row_weight[0] = 0.0
    clean = run(projected_attention, case)
    silent = case.row_weight == 0
    if case.target_scale is not None:
        dirty = replace(case, target_scale=case.target_scale.masked_fill(silent, float("nan")))
    else:
        assert case.target is not None
        dirty = replace(case, target=case.target.masked_fill(silent[..., None], float("nan")))
    found = run(projected_attention, dirty)
    assert all(torch.equal(found[name], clean[name]) for name in NAMES)
    assert (found["kl"][silent.flatten()] == 0).all()
    assert (found["kl"][~silent.flatten()] != 0).all()
    q = case.leaves[0].detach().requires_grad_()
    (dq,) = torch.autograd.grad(projected_attention(q, *case.leaves[1:], *dirty.arguments())[1].sum(), q)
    assert (dq[0, 1] == 0).all()
    assert (dq[1] != 0).any()


@pytest.mark.parametrize(
    ("kind", "value", "words", "rows"),
    [
        pytest.param("f16", math.nan, 5, None, marks=MINUTE),
        ("f16", math.inf, 5, FEW),
        ("f32", math.inf, 5, None),
        ("f32", math.nan, 5, FEW),
        ("f32", math.nan, 70, ((0, 1), (0, 2), (0, 69))),
    ],
)
def test_a_map_that_is_no_number_spoils_its_own_query_alone(kind: str, value: float, words: int, rows: Any) -> None:
    case = make(words, 20, 32, batch=2 if words == 5 else 1, heads=2, query_dim=32, kind=kind, rows=rows)
    assert case.target is not None
    clean = run(projected_attention, case)
    target = case.target.clone()
    place = (0, 1) if rows is None else (0,)  # each of query 1 of the first sample
    target[(*place, 7)] = value
    dirty = run(projected_attention, replace(case, target=target))
    row = 1 if rows is None else 0
    assert torch.equal(dirty["o"], clean["o"])
    assert not dirty["kl"][row].isfinite().any()
    assert dirty["dq"][0, 1].isnan().all()
    for name, own in (("kl", (row,)), ("dq", (0, 1))):
        others = torch.ones(dirty[name].shape[: len(own)], dtype=torch.bool)
        others[own] = False
        assert torch.equal(dirty[name][others], clean[name][others])


@MINUTE
def test_of_two_rows_for_one_query_one_counts_and_the_other_is_zero() -> None:
    """They are refused on the CPU, and not looked at on a GPU: there too no number may be what memory held before."""
    one = make(5, 20, 32, rows=((0, 1), (0, 4), (1, 0)))
    two = replace(one, row_query=one.row_query.where(one.row_query != 4, 1))  # type: ignore[union-attr]
    kl = run(projected_attention, two)["kl"]
    assert kl.isfinite().all()
    assert sorted((kl[:2] == 0).all(1).tolist()) == [False, True]
    assert torch.equal(kl[2], run(projected_attention, one)["kl"][2])


def test_rows_with_an_empty_map_are_exactly_silent() -> None:
    case = make(3, 20, 32, kind="f32")
    assert case.target is not None
    case.target[0, 2] = 0.0
    q = case.leaves[0].requires_grad_()
    kl = projected_attention(*case.leaves, *case.arguments())[1]
    assert (kl[2] == 0).all()
    assert (torch.autograd.grad(kl.sum(), q)[0][0, 2] == 0).all()


@pytest.mark.parametrize("words", [3, 70])
def test_ignored_patches_may_hold_nan_and_empty_samples_give_zeros(words: int) -> None:
    case = make(words, 70 if words < 64 else 20, 32, heads=2, query_dim=32, kind="f16", masked=True)
    q, x, w = case.leaves
    assert case.mask is not None
    assert case.target is not None
    case.mask[0, 3:] = True
    case.mask[1] = True
    clean = run(projected_attention, case)
    x = x.masked_fill(case.mask[..., None], float("nan"))
    target = case.target.masked_fill(case.mask[:, None], float("nan"))
    dirty = run(projected_attention, replace(case, leaves=(q, x, w), target=target))
    assert_close(dirty, run(reference.projected_attention, case, torch.float64), F32)
    assert all(torch.equal(dirty[name], clean[name]) for name in NAMES)
    assert all((dirty[name][1] == 0).all() for name in ("o", "dq", "dx"))
    assert (dirty["kl"][words:] == 0).all()
    assert (dirty["dx"][0][case.mask[0]] == 0).all()


def test_strided_inputs_and_queries_that_samples_share_give_the_same_bits() -> None:
    case = make(4, 20, 48, masked=True)
    q, x, w = case.leaves
    shared = replace(case, leaves=(q[:1].repeat(2, 1, 1), x, w))
    assert case.mask is not None
    strided = replace(
        case,
        leaves=(q[:1].expand(2, -1, -1), x.mT.contiguous().mT, w.T.contiguous().T),
        mask=case.mask.T.contiguous().T,
    )
    found, truth = run(projected_attention, strided), run(projected_attention, shared)
    assert all(torch.equal(found[name], truth[name]) for name in truth)
    odd = replace(case, leaves=(q.mT.contiguous().mT, x, w))
    found, truth = run(projected_attention, odd), run(projected_attention, case)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_the_same_bits_every_time() -> None:
    case = make(70, 20, 48, batch=1, heads=2, query_dim=32, masked=True)
    first, second = (run(projected_attention, case) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_what_is_needed_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(3, 20, 32)
    for name in ("features_gradient", "weights_gradient"):
        monkeypatch.setattr(triton_fused, name, lambda *_: pytest.fail("not needed"))
    q = case.leaves[0].requires_grad_()
    o, kl, *_ = projected_attention(*case.leaves, *case.arguments())
    for loss in (o.sum(), kl.sum(), o.sum() + kl.sum()):
        assert (torch.autograd.grad(loss, q, retain_graph=True)[0] != 0).any()

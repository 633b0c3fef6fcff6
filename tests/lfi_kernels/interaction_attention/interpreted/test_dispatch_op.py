"""The fused kernels as operators of PyTorch: tracing, compiling, checkpoints, autocast, and that they are what runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lfi_kernels import InteractionQueryBlock
from lfi_kernels.interaction_attention import dispatch as op
from lfi_kernels.interaction_attention import triton_fused
from lfi_kernels.interaction_attention.dispatch import TOLERANCES, largest_error
from tests.lfi_kernels.interaction_attention.interpreted.test_triton_fused import (
    DEVICE,
    F16,
    F32,
    FEW,
    LONG,
    make,
    run,
)

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFI_KERNELS", "triton")


def made_block(**told: Any) -> tuple[InteractionQueryBlock, list[Tensor], dict[str, Any]]:
    """A block of 16 channels on 24, its inputs, and the maps of `make`."""
    case = make(told.pop("words", 5), 20, 24, heads=2, query_dim=16, **told)
    torch.manual_seed(0)
    block = InteractionQueryBlock(16, 24, 2).to(DEVICE)
    torch.nn.init.xavier_uniform_(block.w_o)
    leaves = [torch.randn(2, case.leaves[0].shape[1], 16).to(DEVICE), case.leaves[1].float()]
    named = {"target": case.target, "row_weight": case.row_weight, "target_scale": case.target_scale}
    named |= {"key_padding_mask": case.mask, "row_batch": case.row_batch, "row_query": case.row_query}
    return block, [each.requires_grad_() for each in leaves], named


def passes(block: Any, leaves: list[Tensor], named: dict[str, Any], parameters: Any) -> list[Tensor]:
    out, kl = block(*leaves, **named)
    return [out, kl, *torch.autograd.grad(out.square().sum() + kl.sum(), [*leaves, *parameters])]


@pytest.mark.filterwarnings("ignore")  # the check itself reads .grad where there is none
@pytest.mark.parametrize(
    "told",
    [
        pytest.param({}, marks=LONG),
        {"kind": "none"},
        pytest.param({"eps": None}, marks=LONG),
        {"rows": FEW, "masked": True},
    ],
)
def test_operators_keep_the_rules_of_the_library(told: dict[str, Any]) -> None:
    case = make(5, 17, 32, heads=2, query_dim=32, **told)
    leaves = [each.requires_grad_() for each in case.leaves]
    torch.library.opcheck(op.projected_attention, (*leaves, *case.arguments()), test_utils=CHECKS)
    q, x, w = (each.detach() for each in leaves)
    o, kl, *kept = (each.detach() for each in op.projected_attention(q, x, w, *case.arguments()))
    rest = case.arguments()[:-1]
    for needs_x, needs_w in ((True, True), (False, True)):
        given = (o, kl, o, *kept, q, x, w, *rest, needs_x, needs_w)
        torch.library.opcheck(op.projected_attention_backward, given, test_utils=("test_schema", CHECKS[2]))


@pytest.mark.parametrize(
    "told", [{}, {"masked": True}, {"rows": FEW}, {"words": 70, "rows": FEW, "masked": True}, {"kind": "none"}]
)
def test_the_block_gives_the_same_on_both(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    block, leaves, named = made_block(**told)
    if named["target"] is None:
        named["row_weight"] = None
    found = passes(block, leaves, named, block.parameters())
    monkeypatch.setenv("LFI_KERNELS", "reference")
    for a, b in zip(found, passes(block, leaves, named, block.parameters()), strict=True):
        assert float((a - b).detach().norm()) <= 1e-5 * float(b.detach().norm().clamp(min=1e-3))


def test_seeds_that_all_samples_share() -> None:
    block, (queries, features), named = made_block()
    seeds = queries.detach()[:1].requires_grad_()
    found = passes(block, [seeds, features], named, [])
    truth = passes(block, [seeds.detach().repeat(2, 1, 1).requires_grad_(), features], named, [])
    truth[2] = truth[2].sum(0, keepdim=True)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_compiled_without_a_graph_break() -> None:
    block, leaves, named = made_block(rows=FEW)
    truth = passes(block, leaves, named, block.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
    for a, b in zip(passes(compiled, leaves, named, block.parameters()), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_computes_it_again() -> None:
    block, leaves, named = made_block()
    truth = passes(block, leaves, named, block.parameters())

    def kept(*given: Any, **rest: Any) -> Any:
        return checkpoint(block, *given, use_reentrant=False, **rest)

    found = passes(kept, leaves, named, block.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("dtype", [F16] if DEVICE == "cpu" else [F16, torch.bfloat16])
def test_autocast_narrows_the_products_and_nothing_else(dtype: torch.dtype) -> None:
    block, leaves, named = made_block()
    truth = passes(block, leaves, named, block.parameters())
    with torch.autocast(DEVICE, dtype=dtype):
        out, kl = block(*leaves, **named)
    assert out.dtype == kl.dtype == F32
    found = torch.autograd.grad(out.square().sum() + kl.sum(), [*leaves, *block.parameters()])
    for a, b in zip([out, kl, *found], truth, strict=True):
        assert a.dtype == b.dtype
        assert float((a - b).detach().norm() / b.detach().norm()) <= (5e-3 if dtype == F16 else 3e-2)


def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, launch: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            calls.append(name)
            return launch(*args)

        return wrapped

    for name in ("fused_forward", "fused_backward"):
        monkeypatch.setattr(triton_fused, name, counted(name, getattr(triton_fused, name)))
    run(op.projected_attention, make(3, 7, 32, dtype=F16))
    block, leaves, named = made_block()
    passes(block, leaves, named, [])
    assert calls == 2 * ["fused_forward", "fused_backward"]
    monkeypatch.setenv("LFI_KERNELS", "reference")
    passes(block, leaves, named, [])
    assert len(calls) == 4


@LONG
@pytest.mark.parametrize("dtype", [F16, F32])
def test_they_pass_the_check_before_they_are_chosen(dtype: torch.dtype) -> None:
    assert largest_error(torch.empty(0, device=DEVICE).device, dtype) <= TOLERANCES[dtype] / 3

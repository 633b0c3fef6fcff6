"""The fused kernels as operators of PyTorch: tracing, compiling, checkpoints, autocast, and that they are what runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lfi_kernels import InteractionQueryBlock
from lfi_kernels.interaction_attention import op, triton_backward, triton_forward
from lfi_kernels.interaction_attention.dispatch import interaction_attention
from lfi_kernels.interaction_attention.self_check import TOLERANCES, largest_error
from tests.lfi_kernels.interaction_attention.interpreted.test_against_reference import DEVICE, F16, F32, make, run

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFI_KERNELS", "triton")


def arguments(case: dict[str, Any]) -> tuple[Any, ...]:
    names = ("u", "x", "target", "row_weight", "target_scale", "key_padding_mask")
    return (*(case[name] for name in names), "sqrt", case.get("layer_norm_eps"))


@pytest.mark.filterwarnings("ignore")  # the check itself reads .grad where there is none
@pytest.mark.parametrize(("kind", "eps"), [("u8", None), ("none", None), ("u8", 1e-5)])
def test_operators_keep_the_rules_of_the_library(kind: str, eps: float | None) -> None:
    case = make(2, 3, 17, 32, kind=kind) | {"layer_norm_eps": eps}
    u, x = (case[name].requires_grad_() for name in ("u", "x"))
    torch.library.opcheck(op.fused_forward, arguments(case), test_utils=CHECKS)
    z, kl, *kept = (each.detach() for each in op.fused_forward(*arguments(case)))
    rest = arguments(case | {"u": u.detach(), "x": x.detach()})[:-1]
    torch.library.opcheck(op.fused_backward, (z, kl, z, *kept, *rest), test_utils=("test_schema", CHECKS[2]))


@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_compiled_without_a_graph_break() -> None:
    case = make(2, 3, 49, 32)
    truth = run(interaction_attention, case)
    torch._dynamo.reset()
    found = run(torch.compile(interaction_attention, fullgraph=True, backend="aot_eager"), case)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_a_checkpoint_computes_it_again() -> None:
    case = make(2, 3, 49, 32)
    truth = run(interaction_attention, case)

    def kept(u: Any, x: Any, **rest: Any) -> Any:
        return checkpoint(interaction_attention, u, x, use_reentrant=False, **rest)

    found = run(kept, case)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_autocast_does_not_narrow_it() -> None:
    case = make(2, 3, 49, 32)
    truth = run(interaction_attention, case)
    with torch.autocast(case["u"].device.type, dtype=torch.bfloat16):
        found = run(interaction_attention, case)
    assert found["z"].dtype == F32
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, launch: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            calls.append(name)
            return launch(*args)

        return wrapped

    for module, name in ((triton_forward, "launch_forward"), (triton_backward, "launch_backward")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    run(interaction_attention, make(2, 3, 7, 32, dtype=F16))
    assert calls == ["launch_forward", "launch_backward"]
    monkeypatch.setenv("LFI_KERNELS", "reference")
    run(interaction_attention, make(2, 3, 7, 32))
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [F16, F32])
def test_they_pass_the_check_before_they_are_chosen(dtype: torch.dtype) -> None:
    assert largest_error(torch.empty(0, device=DEVICE).device, dtype) <= TOLERANCES[dtype] / 3


def test_the_block_gives_the_same_on_both() -> None:
    case = make(2, 3, 49, 24)
    torch.manual_seed(0)
    block = InteractionQueryBlock(16, 24, 2).to(case["x"].device)
    torch.nn.init.xavier_uniform_(block.w_o)
    queries = torch.randn(2, 3, 16).to(case["x"].device)
    rest = {name: case[name] for name in ("target", "row_weight", "target_scale")}
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for choice in ("triton", "reference"):
            patch.setenv("LFI_KERNELS", choice)
            out, kl = block(queries, case["x"], **rest)
            results.append((out, kl, *torch.autograd.grad(out.square().sum() + kl.sum(), list(block.parameters()))))
    for found, truth in zip(*results, strict=True):
        torch.testing.assert_close(found, truth, rtol=2e-5, atol=2e-5)

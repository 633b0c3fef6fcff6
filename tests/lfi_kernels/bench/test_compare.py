"""The whole comparison: on the CPU, and on a stand-in for a GPU."""

from __future__ import annotations

import gc
import os
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from lfi_kernels.bench import ON_GPU, Ceilings, Row, Shape, case_names, cases, compare, settled
from lfi_kernels.bench.compare import WrongResultError, kept_bytes
from lfi_kernels.interaction_query import InteractionQueryBlock
from tests.lfi_kernels.bench.stand_in import on_stand_in, tiny_work

TINY = Shape(model="ViT-T/16", batch=2, words=3, patches=16)
WEIGHT = {"kept for the gradient", "peak extra memory"}
TIMES = {"forward", "backward", "both"}


def metrics(rows: list[Row], case: str) -> set[str]:
    return {row.metric for row in rows if row.case == case}


def values(rows: list[Row], metric: str) -> dict[str, float]:
    return {row.case: row.value for row in rows if row.metric == metric}


def test_on_the_cpu_every_case_has_its_errors_and_each_pass() -> None:
    rows = compare(TINY, "cpu", 1, case_names("cpu"))
    own = {"RMS error fp32", "max error fp32", "kept for the gradient", *TIMES}
    assert metrics(rows, "folded") == own
    assert metrics(rows, "sdpa") == own | {"both over folded"}
    assert metrics(rows, "projected") == own | {"both over folded", "operations over folded"}
    both = values(rows, "both")
    assert values(rows, "both over folded")["sdpa"] == pytest.approx(both["sdpa"] / both["folded"])


def test_a_wrong_case_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object) -> cases.Outputs:
        out, kl = cases.projected(*args)  # type: ignore[arg-type]
        return out, kl * 1.001

    monkeypatch.setitem(cases.WAYS, "projected", wrong)
    with pytest.raises(ValueError, match="projected must be within"):
        compare(TINY, "cpu", 1, case_names("cpu"))


def test_a_case_that_is_wrong_or_fails_is_told_and_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object) -> cases.Outputs:
        out, kl = cases.projected(*args)  # type: ignore[arg-type]
        return out, kl * 1.001

    def broken(*_: object) -> cases.Outputs:
        raise RuntimeError("no kernel")

    for name, way in (("projected", wrong), ("sdpa", broken)):
        monkeypatch.setitem(cases.WAYS, name, way)
    failed: dict[str, type[Exception]] = {}
    rows = compare(TINY, "cpu", 1, case_names("cpu"), left_out=lambda name, error: failed.update({name: type(error)}))
    assert failed == {"projected": WrongResultError, "sdpa": RuntimeError}
    assert set(values(rows, "both")) == {"folded"}


def test_a_case_that_is_wrong_in_another_dtype_is_not_timed_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    on_stand_in(monkeypatch)
    monkeypatch.setattr("statistics.median", lambda values: 2.0)

    def wrong(block: InteractionQueryBlock, inputs: cases.Inputs) -> cases.Outputs:
        if inputs.queries.dtype == torch.float16:
            raise RuntimeError("no half")
        return cases.projected(block, inputs)

    monkeypatch.setitem(cases.WAYS, "projected", wrong)
    failed: list[str] = []
    names = ("fused", "projected", "compiled-folded")
    rows = compare(replace(TINY, dtype="bf16"), "cuda", 1, names, left_out=lambda name, _: failed.append(name))
    assert failed == ["projected"]
    assert set(values(rows, "both")) == {"fused", "compiled-folded"}


def test_on_a_gpu_three_dtypes_are_checked_graphs_replayed_and_the_block_set_beside_its_floor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = on_stand_in(monkeypatch)
    monkeypatch.setattr("statistics.median", lambda values: 2.0)
    shape = Shape(model="ViT-T/16", batch=2, words=3, patches=16, dtype="bf16")
    ceilings = Ceilings(copied=1e9, products=1e12)
    rows = compare(shape, "cuda", 1, ON_GPU, ceilings)
    every = {f"{kind} error {dtype}" for kind in ("RMS", "max") for dtype in ("fp32", "fp16", "bf16")}
    compiled = {"RMS error bf16", "max error bf16"}
    own = {*WEIGHT, *TIMES, "CUDA graph"}
    assert metrics(rows, "fused") == every | own | {f"{part} over floor" for part in TIMES}
    assert metrics(rows, "folded") == metrics(rows, "projected") == every | own | {"both over fused"}
    assert metrics(rows, "compiled-flex") == compiled | own | {"both over fused"}
    assert metrics(rows, "floor") == TIMES
    assert set(values(rows, "CUDA graph").values()) == {1.0}
    assert sum(line.startswith("capture ") for line in log) == 2 * len(ON_GPU)

    least = ceilings.least_seconds(shape)
    assert values(rows, "both over floor")["fused"] == pytest.approx(2 / least["both"])
    assert values(rows, "both")["floor"] == pytest.approx(1e3 * least["both"])
    assert {row.shape for row in rows} == {str(shape)}


def test_inference_has_one_pass() -> None:
    rows = compare(replace(TINY, maps=0), "cpu", 1, case_names("cpu"))
    assert TIMES & {row.metric for row in rows} == {"forward"}
    assert set(values(rows, "forward over folded")) == {"projected", "sdpa"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_case_that_needs_no_compiler_is_captured_on_a_gpu() -> None:
    shape = Shape(model="ViT-T/16", batch=9, words=3, patches=49, dtype="bf16")
    names = [name for name in ON_GPU if not name.startswith("compiled-")]
    rows = compare(shape, "cuda", 2, names, Ceilings(copied=1e12, products=1e14))
    assert values(rows, "CUDA graph") == dict.fromkeys(names, 1.0)
    for part in TIMES:
        assert all(value > 0 for value in values(rows, part).values())


def test_what_is_kept_does_not_count_inputs() -> None:
    work = tiny_work()
    assert kept_bytes(work) == 0  # products keep their factors, which are leaves
    x = work.leaves[0]
    kept = type(work)(run=lambda: (x.exp(), x.sum(-1)), leaves=work.leaves, constants=(), choice="reference")
    assert kept_bytes(kept) == 4 * 3 * 4


def test_weighing_leaves_no_graph_behind() -> None:
    """A result that its own gradient needs, held, would keep the nodes that gather the leaves' gradients alive."""
    work = tiny_work()
    x = work.leaves[0]

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        out = x.exp()
        out.grad_fn.next_functions[0][0].metadata["marked"] = True
        return out, x.sum(-1)

    kept_bytes(replace(work, run=run))
    gc.collect()
    fresh = x.exp().grad_fn
    assert fresh is not None
    assert "marked" not in fresh.next_functions[0][0].metadata  # type: ignore[union-attr]


def test_one_thread_on_the_cpu_and_the_gpu_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with settled("cpu"):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
        for tune, told in ((False, "0"), (True, "1")):
            with settled("cuda:1", tune):
                assert torch.get_num_threads() == 2
                assert os.environ["LFI_KERNELS_TUNE"] == told
        assert entered == ["cuda:1", "cuda:1"]
    finally:
        torch.set_num_threads(before)

"""What is asked of the kernel benchmark's rows, and how a refused case ends."""

from __future__ import annotations

import pytest

from lfi_kernels import bench
from lfi_pipeline.benchmarks.config import KernelConfig
from lfi_pipeline.benchmarks.kernel import _asked, bench_kernel
from lfi_pipeline.core.errors import BenchmarkError, ConfigError

Limit = tuple[float | None, float | None]


def limits(case: str, metric: str, shape: bench.Shape, *, is_cuda: bool = True) -> list[Limit]:
    rows = [bench.Row(case=case, shape=str(shape), metric=metric, value=1.0, unit="x")]
    return [(each.least, each.most) for each in _asked(rows, is_cuda=is_cuda)]


@pytest.mark.parametrize("words", [16, 32])
@pytest.mark.parametrize("model", bench.WIDTHS)
def test_limits_of_a_gpu(words: int, model: str) -> None:
    shape = bench.Shape(model=model, words=words, dtype="bf16")
    assert limits("compiled-projected", "both over fused", shape) == [(3.0 if model == "ViT-S/16" else 2.5, None)]
    assert limits("projected", "both over fused", shape) == [(3.5, None)]
    assert limits("fused", "both over floor", shape) == [(None, 4.0)]
    for case in ("sdpa", "folded", "compiled-flex"):
        assert limits(case, "both over fused", shape) == [(1.0, None)]
    for case, metric in (("fused", "forward over floor"), ("compiled-folded", "both")):
        assert limits(case, metric, shape) == []


def test_limits_of_a_gpu_where_few_queries_have_a_map() -> None:
    shape = bench.Shape(words=80, dtype="bf16", maps=3)
    assert limits("compiled-projected", "both over fused", shape) == [(2.0, None)]
    assert limits("projected", "both over fused", shape) == [(1.0, None)]
    assert limits("fused", "both over floor", shape) == []
    assert limits("projected", "forward over fused", bench.Shape(words=1000, maps=0)) == [(1.0, None)]


def test_limits_of_the_cpu() -> None:
    asked = {
        (shape.model, shape.words, shape.query_dim)
        for shape in bench.shapes("cpu", bench.Sizes(models=tuple(bench.WIDTHS)))
        if limits("projected", "both over folded", shape, is_cuda=False) == [(2.5, None)]
    }
    assert asked == {("ViT-T/16", 16, 192), ("ViT-S/16", 16, 384)}
    assert limits("sdpa", "both over folded", bench.Shape(query_dim=384), is_cuda=False) == []


def test_ceilings_have_no_shape_and_no_limit() -> None:
    rows = bench.ceiling_rows(bench.Ceilings(copied=1e12, products=1e14))
    assert list(_asked(rows, is_cuda=True)) == []


def test_every_metric_has_its_table() -> None:
    outcome = bench_kernel(KernelConfig(device="cpu", quick=True))
    assert [title for title, _, _ in outcome.tables()] == ["error against float64", "memory", "time"]
    assert outcome.tables()[2][1][:5] == ["case", "shape", "forward, ms", "backward, ms", "both, ms"]
    assert outcome.threads == 1
    assert outcome.asked == ()


def test_a_refused_case_names_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> list[bench.Row]:
        raise ValueError("folded must be right.")

    with pytest.raises(ConfigError, match="tune needs a GPU, got device cpu"):
        bench_kernel(KernelConfig(device="cpu", quick=True, tune=True))
    monkeypatch.setattr(bench, "compare", refuse)
    with pytest.raises(BenchmarkError, match=r"^ViT-T/16 B2 .* fp32: folded must be right\."):
        bench_kernel(KernelConfig(device="cpu", quick=True))


def test_rounds_are_one_or_more() -> None:
    with pytest.raises(ConfigError, match="rounds must be 1 or more, got 0"):
        KernelConfig(rounds=0)

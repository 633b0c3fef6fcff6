"""What is asked of the kernel benchmark's rows, and how a refused case ends."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lfi_kernels import bench
from lfi_pipeline.benchmarks import kernel
from lfi_pipeline.benchmarks.config import ExtractionConfig, GpuConfig, KernelConfig, TrainBenchConfig
from lfi_pipeline.benchmarks.kernel import _asked, bench_gpu, bench_kernel
from lfi_pipeline.benchmarks.outcome import Environment, Measurement, Outcome
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
    assert limits("fused-nchw", "both over fused", shape) == []  # it shows what a copy costs
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


class OfAGpu:
    """Stands in for the kernels' session; `wrong` is what it returns, `given` what it was given."""

    wrong, given = 0, ()

    def __init__(self, *given: object) -> None:
        OfAGpu.given = given

    def run(self) -> int:
        return self.wrong


@pytest.fixture
def has_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernel, "has_triton", lambda: True)
    monkeypatch.setattr(kernel, "Session", OfAGpu)
    here = Environment(commit="", dirty=False, device="GPU", threads=1, torch="2")
    monkeypatch.setattr(Environment, "here", lambda *_: here)


def measured(value: float) -> Outcome:
    row = Measurement(case="lfi", shape="", metric="step", value=value, unit="ms")
    return Outcome(benchmark="train", checked="", measurements=(row,), asked=(), notes=())


def broken() -> Outcome:
    raise RuntimeError("out of memory\nand more")


@pytest.mark.usefixtures("has_gpu")
def test_a_gpu_is_asked_for_everything_and_a_failure_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = (
        ("a step", 9.0, lambda: measured(3.0)),
        ("extraction", 9.0, broken),
        ("another", 9.0, lambda: measured(4.0)),
    )
    monkeypatch.setattr(kernel, "ON_A_GPU", cases)
    lines: list[str] = []
    config = GpuConfig(csv=tmp_path / "gpu.csv", commit="c0ffee")
    right, outcomes = bench_gpu(config, lines.append)
    assert (right, len(outcomes)) == (True, 2)
    assert OfAGpu.given[1:4] == (pytest.approx(8 * 2 / 3), config.csv, "c0ffee")
    assert lines == ["a step: lfi, step 3 ms", "extraction: RuntimeError: out of memory", "another: lfi, step 4 ms"]
    with config.csv.open(newline="") as file:
        rows = [(row["case"], row["metric"], row["value"], row["commit"]) for row in csv.DictReader(file)]
    assert rows == [
        ("lfi", "step", "3", "c0ffee"),
        ("extraction", "failed", "1", "c0ffee"),
        ("lfi", "step", "4", "c0ffee"),
    ]


@pytest.mark.usefixtures("has_gpu")
def test_a_session_of_the_kernels_that_ends_early_costs_the_rest_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OfAGpu, "run", lambda self: broken())
    monkeypatch.setattr(kernel, "ON_A_GPU", (("a step", 9.0, lambda: measured(3.0)),))
    lines: list[str] = []
    right, outcomes = bench_gpu(GpuConfig(csv=tmp_path / "gpu.csv"), lines.append)
    assert (right, len(outcomes)) == (False, 1)
    assert lines == ["kernels: RuntimeError: out of memory", "a step: lfi, step 3 ms"]


@pytest.mark.usefixtures("has_gpu")
def test_a_part_that_would_not_end_in_time_is_not_begun_and_a_shorter_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)

    def taking(seconds: float) -> Outcome:
        clock.now += seconds
        return measured(seconds)

    monkeypatch.setattr(kernel, "time", SimpleNamespace(monotonic=lambda: clock.now))
    cases = (
        ("twice as long as thought", 10.0, lambda: taking(20.0)),
        ("long", 21.0, lambda: pytest.fail("it takes 42 s here, and 40 are left")),
        ("short", 20.0, lambda: taking(30.0)),
        ("last", 6.0, lambda: pytest.fail("10 s are left")),
    )
    monkeypatch.setattr(kernel, "ON_A_GPU", cases)
    lines: list[str] = []
    _, outcomes = bench_gpu(GpuConfig(csv=tmp_path / "gpu.csv", minutes=1.0), lines.append)
    assert len(outcomes) == 2
    assert lines[1] == "long: no time, it may take 42 s and 40 s are left"
    assert lines[3] == "last: no time, it may take 12 s and 10 s are left"


@pytest.mark.usefixtures("has_gpu")
def test_wrong_kernels_are_told_and_no_step_is_begun_without_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OfAGpu, "wrong", 1)
    lines: list[str] = []
    right, outcomes = bench_gpu(GpuConfig(csv=tmp_path / "gpu.csv", minutes=1e-9), lines.append)
    assert not right
    assert not outcomes
    assert [": no time, it may take" in line for line in lines] == [True] * len(kernel.ON_A_GPU)
    (tmp_path / "other.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match="must have the columns"):
        bench_gpu(GpuConfig(csv=tmp_path / "other.csv"), lines.append)


def test_a_gpu_is_asked_for_what_the_issue_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bf16 step compiled and not, and both teachers with and without, the most important first."""
    asked: list[Any] = []
    monkeypatch.setattr(kernel, "bench_train", lambda config: asked.append(config))
    monkeypatch.setattr(kernel, "bench_extraction", lambda config: asked.append(config))
    names = []
    for what, seconds, measure in kernel.ON_A_GPU:
        assert 0 < seconds <= 160  # what is left of 8 minutes after the kernels
        measure()
        names.append(what)
    steps = [each for each in asked if isinstance(each, TrainBenchConfig)]
    assert [(each.compile, each.precision, each.batch_size, each.students) for each in steps] == [
        (compiled, "bf16", 256, ("vit_small_patch16_224",)) for compiled in (True, False)
    ]
    assert [(each.teacher, each.kind, each.compile) for each in asked if isinstance(each, ExtractionConfig)] == [
        (f"{teacher}:random", "contrastive", compiled)
        for teacher in ("coca_ViT-L-14", "ViT-B-32")
        for compiled in (False, True)
    ]
    assert len(set(names)) == len(names) == 6
    assert names[0].startswith("a compiled step")


def test_without_a_gpu_it_says_what_runs_here() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=r"needs a GPU.*lfi bench kernel"):
        bench_gpu(GpuConfig(), print)

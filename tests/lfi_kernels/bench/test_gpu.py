"""The one command for a GPU, on a stand-in: what comes first, what is left out, and that rows are kept as they come."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lfi_kernels.bench import Ceilings, Row, Shape, gpu
from lfi_kernels.bench.compare import start_csv
from tests.lfi_kernels.bench.stand_in import stand_in


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU with a clock that the steps turn; what is said, without the time."""
    stand_in(monkeypatch)
    lines: list[str] = []
    properties = SimpleNamespace(L2_cache_size=0)
    for name, value in (("get_device_properties", properties), ("get_device_name", "GPU"), ("empty_cache", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    clock = SimpleNamespace(now=0.0, lines=lines)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(gpu, "measure_ceilings", lambda _: Ceilings(copied=1e12, products=1e14))
    monkeypatch.setattr(gpu.Session, "race", lambda self: self.say("race"))
    monkeypatch.setattr(gpu.Session, "tiles", lambda self: self.say("tiles") or True)
    monkeypatch.setattr(gpu, "largest_error", lambda *_: 1e-6)

    def compare(shape: Shape, *_: Any, **__: Any) -> list[Row]:
        clock.now += 100.0
        return [Row(case="fused", shape=str(shape), metric="both", value=1.0, unit="ms")]

    monkeypatch.setattr(gpu, "compare", compare)
    return lines


def session(told: list[str], minutes: float = 8.0, path: Path | None = None) -> gpu.Session:
    return gpu.Session("cuda", minutes, path, "c0ffee", lambda line: told.append(line.partition("] ")[2]))


def test_the_most_important_comes_first_and_no_step_is_begun_without_time(told: list[str]) -> None:
    assert session(told).run() == 0
    starts = [line.split(" ")[0].rstrip(":;") for line in told]
    assert starts == [
        "GPU",
        *["check"] * 3,
        "race",
        "ceiling",
        "ViT-S/16",
        "tiles",
        *["ViT-S/16"] * 2,
        "ViT-B/16",
        "table",
    ]
    assert told[6].startswith("ViT-S/16 B1338 H4 M16 N196 D384 Dq128 bf16: fused 1 ms")
    assert "M80" in told[9]
    assert told[9].partition(":")[0].endswith(" R3")
    assert told[-1] == f"table: no time for {len(gpu.TABLE) - 4} shapes more"


def test_rows_are_kept_as_they_come(told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpu.csv"
    start_csv(path)

    def cut_off(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "compare", cut_off)
    with pytest.raises(KeyboardInterrupt):
        session(told, path=path).run()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [*["check"] * 9, "ceiling: copy", "ceiling: product"]
    assert {row["device"] for row in rows} == {"GPU"}


@pytest.mark.parametrize("error", [1.0, float("nan"), RuntimeError("no such instruction\nmore")])
def test_wrong_results_have_no_speed(error: Any, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def largest_error(_: torch.device, dtype: torch.dtype) -> float:
        if dtype == torch.bfloat16 and isinstance(error, Exception):
            raise error
        return error if dtype == torch.bfloat16 else 1e-6

    monkeypatch.setattr(gpu, "largest_error", largest_error)
    monkeypatch.setattr(gpu, "compare", lambda *_, **__: pytest.fail("timed"))
    assert session(told).run() == 1
    assert sum("WRONG" in line for line in told) == 1
    assert told[-1] == "the kernels are wrong on this GPU: nothing is timed"


def test_a_case_that_cannot_be_compiled_does_not_cost_the_others(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(shape: Shape, _: str, __: int, names: list[str], *___: Any, **____: Any) -> list[Row]:
        if "compiled-flex" in names:
            raise RuntimeError("flex")
        return [Row(case=name, shape=str(shape), metric="both", value=1.0, unit="ms") for name in names]

    monkeypatch.setattr(gpu, "compare", compare)
    assert session(told, 1.0).run() == 0
    assert any(line.endswith("RuntimeError: flex; without compiled-flex") for line in told)
    assert any("compiled-projected 1 ms" in line for line in told)


def test_a_wrong_shape_does_not_end_it_and_is_not_forgotten(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(shape: Shape, *_: Any, **__: Any) -> list[Row]:
        if shape.words == 32:
            raise ValueError("fused must be within 0.03")
        return [Row(case="fused", shape=str(shape), metric="both", value=1.0, unit="ms")]

    monkeypatch.setattr(gpu, "compare", compare)
    assert session(told).run() == 1
    assert sum("must be within" in line for line in told) == sum(words == 32 for _, _, words, _ in gpu.TABLE)


def test_every_shape_of_the_issue_is_in_the_table() -> None:
    dense = {(model, patches, words) for model, patches, words, maps in gpu.TABLE if maps is None}
    assert len(dense) == 4 * 3 * 2
    assert len(gpu.TABLE) == len(set(gpu.TABLE)) == 27
    assert {words for *_, words, maps in gpu.TABLE if maps == 3} == {80, 200}
    for model, patches, words, maps in gpu.TABLE:
        found = gpu._shape("cpu", model, patches, words, maps)
        assert (found.model, found.patches, found.words, found.maps) == (model, patches, words, maps)


@pytest.mark.parametrize(
    ("words", "has_gpu", "message"),
    [
        ([], False, "it needs a GPU that torch can use, found none. On the CPU: python -m lfi_kernels.bench"),
        (["--minutes", "0"], True, "--minutes must be above 0, got 0"),
        (["--csv", "BAD"], True, "must have the columns commit, dirty"),
    ],
)
def test_what_cannot_be_is_one_clear_error(
    words: list[str], has_gpu: bool, message: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "BAD").write_text("a,b\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(gpu, "has_triton", lambda: True)
    with pytest.raises(SystemExit) as ended:
        gpu.main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "has_triton", lambda: False)
    monkeypatch.setattr(gpu, "triton_version", lambda: None)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "it needs triton 3.5 or newer, found none" in capsys.readouterr().err

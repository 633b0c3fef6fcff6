"""The one command for a GPU, on a stand-in: what comes first, what is left out, and that rows are kept as they come."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lfi_kernels.bench import Ceilings, Row, Shape, gpu
from lfi_kernels.bench.compare import WrongResultError, start_csv
from lfi_kernels.interaction_attention.tiles import Problem, Tile
from tests.lfi_kernels.bench.stand_in import stand_in

RACE, TILES = gpu.Session.race, gpu.Session.tiles


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


def comparing(failures: dict[str, Exception]) -> Any:
    """A `compare` whose cases fail as they are told to; each is one measured number."""

    def compare(shape: Shape, _: str, __: int, names: tuple[str, ...], *___: Any, left_out: Any, **____: Any) -> Any:
        for name in failures:
            left_out(name, failures[name])
        return [
            Row(case=name, shape=str(shape), metric="both", value=1.0, unit="ms")
            for name in names
            if name not in failures
        ]

    return compare


@pytest.mark.parametrize(
    ("name", "error", "metric"),
    [
        ("compiled-flex", RuntimeError(""), "failed"),
        ("sdpa", RuntimeError("flash\nmore"), "failed"),
        ("sdpa", WrongResultError("sdpa must be within 0.03"), "wrong"),
        ("fused", torch.OutOfMemoryError("1 GiB"), "failed"),
    ],
)
def test_a_competitor_that_fails_costs_itself_alone_and_no_kernel_was_wrong(
    name: str, error: Exception, metric: str, told: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "gpu.csv"
    start_csv(path)
    monkeypatch.setattr(gpu, "compare", comparing({name: error}))
    assert session(told, 1.0, path).run() == 0
    first = str(error).partition("\n")[0]
    lines = [line for line in told if line.endswith(f": {type(error).__name__}: {first}, left out")]
    assert len(lines) == len(gpu.TABLE)
    assert all(line.startswith(f"{name}, ViT") for line in lines)
    with path.open(newline="") as file:
        rows = [
            (row["case"], row["metric"]) for row in csv.DictReader(file) if row["shape"].startswith("ViT-S/16 B1338")
        ]
    others = [(each, "both") for each in gpu.CASES if each != name]
    assert rows[: len(others) + 1] == [(name, metric), *others]


@pytest.mark.parametrize("name", ["fused", "fused-nchw"])
@pytest.mark.parametrize("error", [WrongResultError("off"), RuntimeError("no such instruction")])
def test_only_our_own_kernels_make_the_verdict(
    name: str, error: Exception, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "compare", comparing({name: error}))
    assert session(told, 1.0).run() == 1
    assert any("sdpa 1 ms" in line for line in told)


def test_a_step_that_fails_is_one_line_and_one_row_and_the_next_goes_on(
    told: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of resource: shared memory")

    path = tmp_path / "gpu.csv"
    start_csv(path)
    for where, name in ((gpu.Session, "race"), (gpu, "measure_ceilings"), (gpu.Session, "_launches"), (gpu, "compare")):
        monkeypatch.setattr(where, name, fail)
    monkeypatch.setattr(gpu.Session, "tiles", TILES)
    assert session(told, path=path).run() == 0
    failed = [line.partition(":")[0] for line in told if line.endswith("RuntimeError: out of resource: shared memory")]
    assert [line.partition(",")[0] for line in failed] == [
        *("race", "ceilings", "table", "tiles M16", "tiles M80"),
        *["table"] * (len(gpu.TABLE) - 1),
    ]
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["case"] != "check"]
    assert [row["metric"] for row in rows] == ["failed"] * len(failed)


def test_a_dtype_that_cannot_be_checked_does_not_keep_the_others_from_being_timed(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def largest_error(_: torch.device, dtype: torch.dtype) -> float:
        if dtype == torch.float32:
            raise RuntimeError
        return 1e-6

    monkeypatch.setattr(gpu, "largest_error", largest_error)
    assert session(told).run() == 1
    assert "check, fp32: RuntimeError: , WRONG" in told
    assert any("fused 1 ms" in line for line in told)


def test_a_tile_looks_at_the_clock_and_is_kept_at_once(
    told: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "gpu.csv"
    start_csv(path)
    problem = Problem(kernel="forward", dtype="bfloat16", rows=16, columns=32, depth=196)
    tiles = problem.candidates()
    timed = session(told, minutes=1.5, path=path)  # 90 s

    def run(tile: Tile) -> tuple[torch.Tensor, ...]:
        gpu.time.monotonic.__closure__[0].cell_contents.now += 10.0  # type: ignore[attr-defined]
        if tile == tiles[1]:
            raise RuntimeError("out of resource")
        return (torch.ones(3),)

    monkeypatch.setattr(gpu, "launch", lambda problem, _, run: run(problem.usual()))
    monkeypatch.setattr(gpu, "_median_seconds", lambda run: bool(run()) * 1e-3)
    assert timed._time_tiles("forward M16", problem, run)
    # 10 s for the truth, 20 for the first, 10 for the one that fails, then 20 each: 80 s, and 20 more do not fit.
    assert told[-2] == f"forward M16: no time for {len(tiles) - 4} tiles more"
    with path.open(newline="") as file:
        rows = [(row["shape"], row["metric"]) for row in csv.DictReader(file)]
    expected = [(tiles[1], "failed")] + [(tiles[place], m) for place in (0, 2, 3) for m in ("time", "off by")]
    assert sorted(rows) == sorted((str(tile), metric) for tile, metric in expected)


def test_a_probe_that_has_no_room_costs_the_others_nothing(
    told: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    race = pytest.importorskip("lfi_kernels.bench.triton_race")
    path = tmp_path / "gpu.csv"
    start_csv(path)

    def probe(_: str, tile: tuple[int, ...], twice: bool) -> float:
        if tile[-1] == 3 and not twice:
            raise RuntimeError("out of resource: shared memory, Required: 147456")
        return 0.25

    monkeypatch.setattr(race, "probe", probe)
    RACE(session(told, path=path))
    assert [line.rpartition(": ")[2] for line in told].count("error 0.25") == 4
    with path.open(newline="") as file:
        rows = [(row["case"], row["metric"]) for row in csv.DictReader(file)]
    once, twice = "race, loaded once", "race, loaded twice"
    assert rows == [*[(once, "failed"), (twice, "error")] * 2, (once, "error"), (twice, "error")]


def test_a_file_that_cannot_be_written_does_not_end_it(told: list[str], tmp_path: Path) -> None:
    assert session(told, path=tmp_path / "gone" / "gpu.csv").run() == 0
    assert any("gpu.csv cannot be written: No such file or directory" in line for line in told)


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

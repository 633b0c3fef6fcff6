"""The script: what it asks for, prints, writes and refuses."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lfi_kernels.bench import ON_CPU, Row, Shape, __main__
from lfi_kernels.bench.compare import COLUMNS


def test_tiles_are_not_measured_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        __main__.main(["--quick", "--device", "cpu", "--tune"])
    assert ended.value.code == 2
    assert "--tune needs a GPU, got --device cpu" in capsys.readouterr().err


def test_it_runs_as_a_script_with_torch_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.csv"
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module('lfi_kernels.bench', run_name='__main__')\n"
        "finally: assert not {'lfi_pipeline', 'lfi_cli'} & set(sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, "bench", "--quick", "--device", "cpu", "--csv", str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["case"] for line in lines} == {"folded", "projected", "sdpa"}
    assert {line["threads"] for line in lines} == {1}
    assert all(Shape.parse(line["shape"]).patches == 16 for line in lines)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row) for row in rows] == [COLUMNS] * len(lines)
    assert [row["value"] for row in rows] == [f"{line['value']:.6g}" for line in lines]


def test_a_refused_shape_does_not_end_the_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_fails(shape: Shape, *_: object, **__: object) -> list[Row]:
        if shape.words == 1:
            raise ValueError("folded is wrong.")
        return [Row(case="folded", shape=str(shape), metric="both", value=1.0, unit="ms")]

    monkeypatch.setattr(__main__, "compare", one_fails)
    assert __main__.main(["--quick", "--device", "cpu", "--words", "1,2"]) == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "ViT-T/16 B2 H4 M1 N16 D192 Dq128 fp32: folded is wrong.",
        "ViT-T/16 B2 H4 M2 N16 D192 Dq128 fp32: folded 1 ms",
    ]
    assert [json.loads(line)["shape"] for line in shown.out.splitlines()] == ["ViT-T/16 B2 H4 M2 N16 D192 Dq128 fp32"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "ViT-H"], "Unknown model 'ViT-H'. Choices: ViT-T/16"),
        (["--cases", "fused"], "Unknown case 'fused' on cpu. Choices: folded"),
        (["--rounds", "0"], "must be a whole number of 1 or more, got '0'"),
    ],
)
def test_the_script_names_the_choices(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--device", "cpu", *words])
    assert message in capsys.readouterr().err


def test_the_script_leaves_another_csv_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n")
    with pytest.raises(SystemExit):
        __main__.main(["--device", "cpu", "--quick", "--csv", str(path)])
    assert "must have the columns commit, dirty" in capsys.readouterr().err
    assert path.read_text() == "a,b\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The comparisons that are asked for: shape, device, rounds and cases; each takes 2 ms, whatever it is."""
    calls: list[tuple[Any, ...]] = []

    def told(shape: Shape, device: str, rounds: int, names: tuple[str, ...], *_: object, **__: object) -> list[Row]:
        calls.append((shape, device, rounds, names))
        return [Row(case=names[0], shape=str(shape), metric="both", value=2.0, unit="ms")]

    monkeypatch.setattr(__main__, "compare", told)
    return calls


def test_every_combination_of_the_sizes_is_compared(asked: list[tuple[Any, ...]]) -> None:
    words = ["--models", "ViT-S/16", "--patches", "16, 4,", "--words", "2", "--query-dims", "64,D", "--maps", "9"]
    assert __main__.main(["--device", "cpu", "--cases", "sdpa,folded", "--rounds", "3", *words]) == 0
    shapes = [each[0] for each in asked]
    assert [(each.patches, each.query_dim) for each in shapes] == [(16, 64), (16, 384), (4, 64), (4, 384)]
    assert {(each.model, each.words, each.maps, each.batch) for each in shapes} == {("ViT-S/16", 2, 2, 8)}
    assert {each[1:] for each in asked} == {("cpu", 3, ("folded", "sdpa"))}


def test_rounds_are_twenty_or_one_where_nothing_is_measured(asked: list[tuple[Any, ...]]) -> None:
    sizes = ["--device", "cpu", "--models", "ViT-T/16", "--patches", "4", "--words", "1", "--query-dims", "16"]
    assert __main__.main(sizes) == 0
    assert __main__.main([*sizes, "--quick", "--rounds", "7"]) == 0
    assert [each[2:] for each in asked] == [(20, ON_CPU), (1, ON_CPU)]


def test_rows_of_several_runs_stand_in_one_csv(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    for commit in ("abc", "def"):
        assert __main__.main(["--device", "cpu", "--quick", "--csv", str(path), "--commit", commit]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["metric"], row["value"]) for row in rows] == 2 * [("folded", "both", "2")]
    assert len(asked) == 2


@pytest.mark.parametrize(("text", "names"), [("a,b", ("a", "b")), (" a , ,b,", ("a", "b")), ("", ()), (",", ())])
def test_names_are_cut_at_commas(text: str, names: tuple[str, ...]) -> None:
    assert __main__._names(text) == names


@pytest.mark.parametrize("text", ["-1", "1.5", "", "ten", " 3"])
def test_rounds_are_whole_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        __main__.main(["--device", "cpu", f"--rounds={text}"])
    assert ended.value.code == 2
    assert f"--rounds: must be a whole number of 1 or more, got {text!r}" in capsys.readouterr().err

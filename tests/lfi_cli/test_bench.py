"""lfi bench NAME"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_cli.main import entries

OTHERS = ["plot-kernel", "gpu"]  # the one draws, the other is a session: without options of every benchmark
BENCHMARKS = {name.removeprefix("bench ") for name, _ in entries() if name.startswith("bench ")}
NAMES = sorted(BENCHMARKS - {*OTHERS})
Fails = Callable[..., str]


def test_every_benchmark_is_there() -> None:
    assert NAMES == ["codec", "extract", "index", "kernel", "loader", "maps", "reads", "train"]


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_and_shows_an_example(lfi: Callable[..., Any], name: str) -> None:
    shown = lfi("bench", name, "--help").out
    assert f"Example: lfi bench {name}" in shown
    for option in ("--csv", "--json", "--quick"):
        assert option in shown


@pytest.mark.parametrize(
    "words",
    [
        ("reads",),
        ("loader", "--workers", "0"),
        ("index",),
        ("kernel", "--device", "cpu"),
        ("maps", "--teacher", "scenes-coca", "--kinds", "all"),
        ("extract", "--teacher", "scenes-coca", "--kind", "relevance"),
        ("train", "--teacher", "scenes-coca"),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_a_quick_run_gives_json_and_csv(lfi: Callable[..., Any], tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "bench.csv"
    result = lfi("bench", *words, "--quick", "--csv", path, "--json").json
    assert result["benchmark"] == words[0]
    assert result["checked"]
    assert set(result["environment"]) == {"commit", "dirty", "device", "threads", "torch"}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["metric"]) for row in rows] == [
        (each["case"], each["metric"]) for each in result["measurements"]
    ]


def test_the_kernel_benchmark_can_be_run_in_parts_and_plotted(lfi: Callable[..., Any], tmp_path: Path) -> None:
    path, plot = tmp_path / "bench.csv", tmp_path / "new" / "kernel.svg"
    asked = ("--device", "cpu", "--quick", "--csv", path)
    result = lfi("bench", "kernel", *asked, "--words", "1", "--cases", "folded,sdpa", "--json").json
    assert {each["case"] for each in result["measurements"]} == {"folded", "sdpa"}
    assert {each["shape"] for each in result["measurements"]} == {"ViT-T/16 B2 H4 M1 N16 D192 Dq128 fp32"}
    assert result["environment"]["threads"] == 1
    shown = lfi("bench", "kernel", *asked, "--words", "2,4")
    assert shown.out.count("\n  projected  ") == 2 * 3
    assert "lfi bench kernel: memory" in shown.out
    assert "ViT-T/16 B2 H4 M4 N16 D192 Dq128 fp32" in shown.out
    assert lfi("bench", "plot-kernel", path, plot, "--json").json == {"plot": str(plot)}
    drawn = plot.read_text()
    for words in (1, 2, 4):
        assert f"ViT-T/16 N16 M{words} Dq128, sdpa" in drawn


def test_the_kernel_benchmark_names_the_choices(fails: Fails, tmp_path: Path) -> None:
    assert "Choices: ViT-B/16, ViT-L/16" in fails("UnknownNameError", "bench", "kernel", "--models", "ViT-X/16")
    assert "Choices: compiled-flex, compiled-folded" in fails("UnknownNameError", "bench", "kernel", "--cases", "eager")
    here = ("bench", "kernel", "--device", "cpu", "--quick")
    assert "on cpu. Choices: folded, projected, sdpa" in fails("ConfigError", *here, "--cases", "fused")
    assert "words must be whole numbers from 1 to 21000" in fails("ConfigError", *here, "--words", "many")
    assert "cannot be read" in fails("ConfigError", "bench", "plot-kernel", tmp_path / "none.csv", tmp_path / "a.svg")


def test_codec_shows_a_table_that_is_not_cut(lfi: Callable[..., Any], fails: Fails) -> None:
    shown = lfi("bench", "codec", "--quick")
    assert shown.code == 0
    assert "resize: top 16 + rest, blosc zstd bitshuffle" in shown.out
    assert "checked first: compressors are lossless" in shown.out
    assert "holds: resize: cache: uint8_sqrt, zstd 3, bytes a sample" in shown.out
    assert "mosaic, resize" in fails("UnknownNameError", "bench", "codec", "--quick", "--forms", "crop")


def test_a_number_that_is_none_is_refused(fails: Fails) -> None:
    assert "workers must be a list of whole numbers" in fails(
        "ConfigError", "bench", "loader", "--quick", "--workers", "0,two"
    )

"""The CSV that all benchmarks share."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from lfi_kernels.bench import Row
from lfi_kernels.bench.compare import append_csv as append_kernel_csv
from lfi_kernels.bench.compare import environment as kernel_environment
from lfi_kernels.bench.compare import records, start_csv
from lfi_pipeline.benchmarks import COLUMNS, Environment, Measurement, Outcome, append_csv
from lfi_pipeline.core.errors import ConfigError, LFIError

HERE = Environment(commit="abc", dirty=True, device="a, b", threads=2, torch="2.0")
ROWS = tuple(Measurement(case=f"case, {i}", shape="4x4", metric="time", value=i + 1 / 3, unit="ms") for i in range(2))


def test_rows_are_appended_below_one_head(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.csv"
    for name in ("first", "second"):
        append_csv(path, HERE, Outcome(benchmark=name, checked="", measurements=ROWS))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["benchmark"] for row in rows] == ["first", "first", "second", "second"]
    assert rows[1] == {
        **{"commit": "abc", "dirty": "true", "device": "a, b", "threads": "2", "torch": "2.0"},
        **{"benchmark": "first", "case": "case, 1", "shape": "4x4", "metric": "time", "value": "1.33333", "unit": "ms"},
    }


def test_another_csv_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="must have the columns commit, dirty"):
        append_csv(path, HERE, Outcome(benchmark="x", checked="", measurements=ROWS))
    assert path.read_text() == "a,b\n1,2\n"
    with pytest.raises(LFIError, match="Name another file"):
        append_csv(tmp_path, HERE, Outcome(benchmark="x", checked="", measurements=ROWS))


def test_the_environment_names_commit_processor_and_versions() -> None:
    here = Environment.here()
    assert here.commit == "" or len(here.commit) == 40
    assert here.torch.split(", triton ")[0] == torch.__version__
    assert here.threads == torch.get_num_threads()
    assert Environment.here(threads=7).threads == 7
    assert " x" in here.device


def test_the_script_of_the_kernels_writes_the_same(tmp_path: Path) -> None:
    around = kernel_environment("cpu")
    assert around == asdict(Environment.here())

    path = tmp_path / "bench.csv"
    append_csv(path, Environment.here(), Outcome(benchmark="kernel", checked="", measurements=ROWS))
    start_csv(path)
    append_kernel_csv(path, records(around, [Row(**asdict(row)) for row in ROWS]))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[:2] == rows[2:]

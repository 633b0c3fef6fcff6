"""Two processes that share a batch learn what one learns, and take each other's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.options import flatten
from lfi_pipeline.training import TrainConfig
from tests.lfi_pipeline.training.running import metrics, train_lines, train_one

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("sharing.py")
# The presence term draws words, and drop path drops, by generators of each process: both are left out.
CASES: dict[str, dict[str, Any]] = {
    "text": {"objective": "lfi+embedding+logits", "ema": 0.9, "mixup": 0.5, "cutmix": 1.0},
    "queries": {"head": "queries", "objective": "lfi+embedding", "mix": "maps"},
}
LONG = {"epochs": 9, "batch_size": 8, "scale": [0.2, 1.0]}  # 27 steps: gradients are measured at the first and the 21st


def shared(plan: list[dict[str, Any]], folder: Path) -> None:
    """Carry out the turns of `plan` (see sharing.py)."""
    (folder / "plan.json").write_text(json.dumps([{"workers": 0, "stop": None, **turn} for turn in plan]))
    path = os.pathsep.join(str(ROOT / part) for part in (".", "cli", "kernels"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder / "plan.json")],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def assert_close(one: Path, other: Path) -> None:
    first, second = ([line for line in metrics(run) if line["event"] in ("train", "val")] for run in (one, other))
    assert len(first) == len(second)
    for line, twin in zip(first, second, strict=True):
        names = [name for name in line if name.endswith("loss") or name.startswith("map_")]
        # a score is a rank: images whose scores are equal up to rounding may change places
        assert {n: line[n] for n in names} == pytest.approx({n: twin[n] for n in names}, abs=1e-5), line["step"]


def test_two_processes_learn_what_one_learns(make_config: MakeConfig, tmp_path: Path) -> None:
    configs = {name: make_config(**LONG, **changes) for name, changes in CASES.items()}
    uneven = {name: replace(config, data=replace(config.data, batch_size=10)) for name, config in configs.items()}
    runs: list[list[Any]] = []
    for name, config in configs.items():
        train_one(config, tmp_path / "one" / name)
        runs.append([flatten(config), str(tmp_path / "two" / name)])
    short = replace(uneven["text"], data=replace(uneven["text"].data, epochs=2))
    train_one(short, tmp_path / "one" / "uneven")
    parts = [flatten(replace(short, grad_accum_steps=2)), str(tmp_path / "two" / "parts")]
    back = flatten(configs["text"])
    plan: list[dict[str, Any]] = [{"processes": 2, "runs": [run]} for run in runs[1:]]
    plan += [{"processes": 2, "runs": [[flatten(short), str(tmp_path / "two" / "uneven")]]}]
    plan += [{"processes": 2, "workers": 1, "runs": [parts]}]
    plan += [
        {"processes": processes, "stop": stop, "runs": [[back, str(tmp_path / "two" / "text")]]}
        for processes, stop in ((2, 10), (1, 25), (2, None))
    ]
    together = {name: make_config(objective=name, epochs=1) for name in ("none", "lfi")}
    for name, config in together.items():
        train_one(config, tmp_path / "one" / f"with {name}")
    plan += [{"processes": 2, "runs": [[flatten(c), str(tmp_path / "two" / f"with {n}")] for n, c in together.items()]}]
    shared(plan, tmp_path)
    for name in (*CASES, "uneven"):
        assert len(train_lines(tmp_path / "one" / name)) == (27 if name != "uneven" else 4)
        assert_close(tmp_path / "one" / name, tmp_path / "two" / name)
    for name in together:
        assert_close(tmp_path / "one" / f"with {name}", tmp_path / "two" / f"with {name}")
    assert_close(tmp_path / "one" / "uneven", tmp_path / "two" / "parts")
    assert not list((tmp_path / "two").rglob("state.safetensors"))

"""Run tiny trainings and read what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lfi_pipeline.training import RuntimeConfig, TrainConfig, train

MACHINE = RuntimeConfig(device="cpu", track=())
TIMED = ("images_per_second", "step_ms")


def train_one(config: TrainConfig, out: Path, machine: RuntimeConfig = MACHINE, command: str = "") -> dict[str, Any]:
    """Train one run alone and return its summary."""
    (summary,) = train([(config, out)], machine, command=command)
    return summary


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every line of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without what a clock says."""
    lines = [line for line in metrics(run) if line["event"] != "time"]
    return [{name: value for name, value in line.items() if name not in TIMED} for line in lines]


def train_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's steps."""
    return [line for line in metrics(run) if line["event"] == "train"]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """A run's kept weights."""
    return load_file(run / "checkpoints" / f"{name}.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs are the same: their weights bit by bit, and all that was written of their steps."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    differing = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert not differing
    lines, others = untimed(one), untimed(other)
    assert [pair for pair in zip(lines, others, strict=False) if pair[0] != pair[1]] == [], "of steps"
    assert len(lines) == len(others)

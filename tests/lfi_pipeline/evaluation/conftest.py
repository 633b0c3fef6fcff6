"""One small finished run of each kind, on the caches of the root conftest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lfi_pipeline.training import Machine, train
from lfi_pipeline.training.settings import config_of


def _trained(targets: Path, out: Path, objective: str, queries: str = "text") -> Path:
    config = config_of(
        {
            "targets": str(targets),
            "student": "vit_tiny_patch16_224",
            "image_size": 64,
            "patch_size": 16,
            "student_arg": {"depth": 3, "embed_dim": 32, "num_heads": 2},
            "query_width": 16,
            "query_heads": 2,
            "objective": objective,
            "queries": queries,
            "slots": 6,
            "epochs": 1,
            "batch_size": 8,
        }
    )
    train([(config, out)], Machine(device="cpu", track=()))
    return out


@pytest.fixture(scope="session")
def _trained_runs(tiny_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    runs = {name: _trained(tiny_targets, folder / name, name) for name in ("none", "lfi")}
    return runs | {"learned": _trained(tiny_targets, folder / "learned", "lfi", "learned")}


@pytest.fixture
def run_of(_trained_runs: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A copy, free to write into, of a trained run of objective `none`, and of `lfi` with queries of either mode."""
    return {name: Path(shutil.copytree(run, tmp_path / name)) for name, run in _trained_runs.items()}

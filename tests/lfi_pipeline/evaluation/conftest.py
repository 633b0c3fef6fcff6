"""One small finished run of each kind, on the caches of the root conftest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lfi_pipeline.core.options import build
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers import extract as extraction
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.training import RuntimeConfig, train
from lfi_pipeline.training.config import TrainConfig


def _trained(targets: Path, out: Path, objective: str, **settings: Any) -> Path:
    config = build(
        TrainConfig,
        {
            "targets": str(targets),
            "head": "linear",
            "student": "vit_tiny_patch16_224",
            "image_size": 64,
            "patch_size": 16,
            "student_arg": {"depth": 3, "embed_dim": 32, "num_heads": 2},
            "query_width": 16,
            "query_heads": 2,
            "objective": objective,
            "epochs": 1,
            "batch_size": 8,
        }
        | settings,
    )
    train([(config, out)], RuntimeConfig(device="cpu", track=()))
    return out


@pytest.fixture(scope="session")
def train_small() -> Callable[..., Path]:
    """Train on a cache, into a folder, by an objective; further settings by name."""
    return _trained


@pytest.fixture(scope="session")
def _trained_runs(tiny_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: _trained(tiny_targets, folder / name, name) for name in ("none", "lfi")}


@pytest.fixture
def run_of(_trained_runs: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A copy, free to write into, of a trained run of each objective, `none` and `lfi`."""
    return {name: Path(shutil.copytree(run, tmp_path / name)) for name, run in _trained_runs.items()}


@pytest.fixture(scope="session")
def left_out_run(tiny_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of objective `none` that left domain `grey` out; read only."""
    return _trained(tiny_targets, tmp_path_factory.mktemp("left-out") / "grey", "none", hold_out=["grey"])


@pytest.fixture(scope="session")
def presence_run(tiny_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that can score words, with domain `grey` left out; read only."""
    return _trained(tiny_targets, tmp_path_factory.mktemp("presence") / "run", "lfi+presence", hold_out=["grey"])


PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


@pytest.fixture(scope="session")
def pacs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PACS with two images of each class in each domain: 0 in list train, 1 in crossval, both in test; read only."""
    root = tmp_path_factory.mktemp("pacs") / "pacs"
    rng = np.random.default_rng(0)
    for domain in PACS_DOMAINS:
        lines = [(f"{domain}/{name}/{i}.png", f"{label}") for label, name in enumerate(PACS_CLASSES, 1) for i in (0, 1)]
        for path, _ in lines:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(root / path)
        for split, kept in (("train", "0"), ("crossval", "1"), ("test", "01")):
            listed = [f"{path} {label}" for path, label in lines if Path(path).stem in kept]
            (root / f"{domain}_{split}_kfold.txt").write_text("\n".join(listed) + "\n")
    return root


@pytest.fixture(scope="session")
def pacs_targets(pacs_root: Path, tiny_teacher: CocaTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of list train of that PACS, read by prompts; read only."""
    out = tmp_path_factory.mktemp("pacs-targets") / "train"
    config = extraction.ExtractConfig(dataset="pacs", data_root=pacs_root, words=2, text="prompts", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "load_teacher", lambda name, **_: tiny_teacher)
        extraction.extract(config, out)
    return out


@pytest.fixture(scope="session")
def pacs_run(pacs_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on that cache with domain `sketch` left out; read only."""
    return _trained(pacs_targets, tmp_path_factory.mktemp("pacs-run") / "run", "none", hold_out=["sketch"])

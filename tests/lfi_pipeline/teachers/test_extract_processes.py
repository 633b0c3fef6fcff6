"""Several processes on one cache, killed at random moments: the rerun's bytes are those of an undisturbed run.

LFI_KILL_TRIALS=50 takes as many trials as the promise was measured with; the default keeps the suite quick.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lfi_pipeline.targets.commits import LAYOUTS
from lfi_pipeline.teachers.config import ShardAssignment
from lfi_pipeline.teachers.extract import extract

SCRIPT = Path(__file__).with_name("killing.py")


@pytest.fixture(scope="module")
def killing() -> ModuleType:
    specification = importlib.util.spec_from_file_location("killing", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def undisturbed(killing: ModuleType, scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes when nothing happens to it, in each layout."""
    out = tmp_path_factory.mktemp("undisturbed")
    for layout in LAYOUTS:
        extract(killing.config(scenes_root, layout), out / layout, share=ShardAssignment())
    return out


def test_killed_at_random_moments_reruns_are_byte_identical(
    undisturbed: Path, scenes_root: Path, tmp_path: Path
) -> None:
    trials = os.environ.get("LFI_KILL_TRIALS", "3")
    seed = os.environ.get("LFI_KILL_SEED", "1")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(scenes_root), str(undisturbed), str(tmp_path), trials, seed],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[2]) > 0, done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def test_torchrun_writes_what_one_process_writes_and_its_first_rank_speaks(
    killing: ModuleType, undisturbed: Path, scenes_root: Path, tmp_path: Path
) -> None:
    """The slowest test here: three processes import torch."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lfi_cli"]
    named = ["extract-teacher", "--dataset", "scenes", "--data-root", scenes_root, "--out", tmp_path / "targets"]
    options = ["--words", 6, "--samples-per-shard", 4, "--batch-size", 4, "--kind", "relevance", "--device", "cpu"]
    done = subprocess.run(
        [str(word) for word in [*launch, *named, *options, "--json"]],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["samples"] == 24
    assert killing.tree(tmp_path / "targets") == killing.tree(undisturbed / "zarr")


def test_ranks_and_ranges_write_what_one_process_writes(
    killing: ModuleType, undisturbed: Path, scenes_root: Path, tmp_path: Path
) -> None:
    for share in (ShardAssignment(first=4), ShardAssignment(first=1, end=3), ShardAssignment(rank=1, world=2)):
        extract(killing.config(scenes_root), tmp_path / "targets", share=share)
    assert killing.tree(tmp_path / "targets") == killing.tree(undisturbed / "zarr")


def test_a_range_makes_its_own_shards_only(killing: ModuleType, scenes_root: Path, tmp_path: Path) -> None:
    summary, _ = extract(killing.config(scenes_root), tmp_path / "targets", share=ShardAssignment(first=1, end=3))
    assert summary.samples == 8
    assert sorted(path.stem for path in (tmp_path / "targets/commits").iterdir()) == ["000001", "000002"]

"""Shards as Ray tasks: the bytes of one process, whatever happens to the workers, and errors that a person can read."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.teachers.config import ExtractConfig, ShardAssignment
from lfi_pipeline.teachers.extract import extract
from lfi_pipeline.teachers.ray_engine import extract_on_ray

SCRIPT = Path(__file__).with_name("raying.py")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra 'ray'")


@dataclass(frozen=True)
class Storm:
    """What raying.py made."""

    work: Path
    ended: dict[str, str]
    printed: str


@pytest.fixture(scope="module")
def storm(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Storm:
    """A process of its own: Ray leaves threads, and warnings are errors here."""
    work = tmp_path_factory.mktemp("ray")
    temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's sockets need a short path
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "RAY_TMPDIR": temporary,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(scenes_root), str(work)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=240,
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return Storm(work, json.loads((work / "ended.json").read_text()), done.stdout)


@pytest.fixture(scope="module")
def wanted(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    out = tmp_path_factory.mktemp("one-process") / "targets"
    options: dict[str, Any] = {"words": 6, "samples_per_shard": 8, "batch_size": 8, "kind": "relevance"}
    extract(ExtractConfig(dataset="scenes", data_root=scenes_root, device="cpu", **options), out)
    return _tree(out)


def _tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@needs_ray
def test_the_shard_of_a_worker_that_died_is_made_again_and_the_bytes_are_those_of_one_process(
    storm: Storm, wanted: dict[str, bytes]
) -> None:
    assert (storm.work / "died").exists()
    assert _tree(storm.work / "command") == wanted
    assert storm.ended["command"] == "24"


@needs_ray
def test_the_result_is_alone_on_stdout_though_a_worker_died(storm: Storm) -> None:
    assert json.loads(storm.printed)["samples"] == 24


@needs_ray
def test_threads_of_a_worker_are_its_tasks_cpus(storm: Storm) -> None:
    assert (storm.work / "threads").read_text() == "1 1"


@needs_ray
def test_a_cluster_that_was_there_before_stays(storm: Storm) -> None:
    assert storm.ended["cluster"] == "up"


@needs_ray
def test_workers_that_always_die_are_one_error(storm: Storm) -> None:
    assert storm.ended["dying"].startswith("LFIError: A shard's worker died 1 times (")
    assert storm.ended["dying"].endswith("run the same command again.")


@needs_ray
def test_a_users_error_in_a_worker_is_raised_as_it_is(storm: Storm) -> None:
    assert storm.ended["failing"] == "UnknownNameError: Unknown tag 'larg'. Did you mean 'large'? Choices: large."


def test_without_ray_the_extra_is_named(scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"lfi-pipeline\[ray\]"):
        extract_on_ray(
            ExtractConfig(dataset="scenes", data_root=scenes_root), tmp_path / "out", share=ShardAssignment()
        )
    assert not (tmp_path / "out").exists()

"""Loading a trained student: which weights, and without timm's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lfi_pipeline.core.checksums import unseal_folder, write_recorded
from lfi_pipeline.core.errors import RunError, UnknownNameError
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.training import StreamConfig, TrainConfig
from lfi_pipeline.training.learner import load_run
from tests.lfi_pipeline.training.running import train_one


@pytest.fixture
def run(tiny_targets: Path, tmp_path: Path) -> Path:
    student = StudentConfig(image_size=32, kwargs={"depth": 2, "embed_dim": 16, "num_heads": 2})
    stream = StreamConfig(targets=tiny_targets, epochs=1, batch_size=8)
    train_one(TrainConfig(stream=stream, student=student, objective="none"), tmp_path / "run")
    return tmp_path / "run"


def test_the_last_or_the_best_weights(run: Path) -> None:
    last = load_file(run / "checkpoints/last.safetensors")
    (run / "checkpoints/best.safetensors").unlink()
    with pytest.raises(RunError, match=r"best\.safetensors must be a checkpoint"):
        load_run(run, device="cpu", weights="best")
    unseal_folder(run)  # else other weights are damage
    save_file({name: tensor + 1 for name, tensor in last.items()}, run / "checkpoints/best.safetensors")
    for weights, added in (("last", 0), ("best", 1)):
        student = load_run(run, device="cpu", weights=weights).student
        assert not student.training
        assert torch.equal(student.head.weight, last["head.weight"] + added)
    with pytest.raises(UnknownNameError, match="first"):
        load_run(run, device="cpu", weights="first")


def test_a_run_that_began_from_timms_weights_is_loaded_without_them(run: Path) -> None:
    path = run / "config.json"
    record = json.loads(path.read_text())
    record["settings"]["pretrained"] = True  # this depth has none to fetch: asking would fail
    write_recorded(run, "config.json", json.dumps(record).encode())
    load_run(run, device="cpu")

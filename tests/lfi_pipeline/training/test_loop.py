"""Whole tiny runs: what they leave behind, that a seed decides everything, and what they refuse."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lfi_pipeline.data.replay import Augmentation
from lfi_pipeline.errors import (
    ConfigError,
    CorruptTargetsError,
    DatasetError,
    OutputExistsError,
    TargetsError,
    UnknownNameError,
)
from lfi_pipeline.report import load_run
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training import TrainConfig, Trainer
from lfi_pipeline.training.loop import build_student

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).resolve().parents[3]
PLAIN = Augmentation(least_area=1, flip=0)
TIMED = ("images_per_second", "step_ms")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in metrics(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last.safetensors")


@pytest.mark.parametrize("objective", ["none", "embedding", "lfi"])
def test_a_run_from_end_to_end(make_config: MakeConfig, tmp_path: Path, objective: str) -> None:
    run = tmp_path / objective
    summary = Trainer(make_config(objective=objective), run, command="lfi train").run()
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 6
    assert 0 <= summary["map_seen"] <= 1
    assert 0 <= summary["map_heldout"] <= 1
    assert (summary["parameters"]["queries"] > 0) == (objective == "lfi")
    assert (summary["parameters"]["projection"] > 0) == (objective == "embedding")

    lines = metrics(run)
    steps = [line for line in lines if line["event"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in steps] == [1, 1, 1, 2, 2, 2]
    for line in steps:
        assert math.isfinite(line["loss"])
        if objective == "none":
            assert line["interaction_loss"] is None
            assert line["loss"] == line["task_loss"]
        else:
            assert line["loss"] == pytest.approx(line["task_loss"] + 0.1 * line["interaction_loss"], rel=1e-5)
    validations = [line for line in lines if line["event"] == "val"]
    assert [(line["step"], line["epoch"]) for line in validations] == [(3, 1), (6, 2)]
    assert validations[-1]["map_seen"] == summary["map_seen"]

    config = json.loads((run / "config.json").read_text())
    assert config["seen_domains"] == ["colour", "grey", "outline"]
    assert config["dataset"]["train_samples"] == 24
    assert config["dataset"]["val_samples"] == 16
    assert [tap["teacher_layer"] for tap in config["taps"]] == [0, 0, 0]
    assert config["command"] == "lfi train"

    read = load_run(run)  # the report's own reader
    assert read.config.objective == objective
    assert read.summary is not None
    assert len(read.train) == 6
    assert read.map_heldout == summary["map_heldout"]


def test_the_seed_decides_everything(make_config: MakeConfig, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        Trainer(make_config(seed=seed, epochs=1), tmp_path / name).run()
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    assert untimed(tmp_path / "a") != untimed(tmp_path / "c")
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_workers_change_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    for workers in (0, 2):
        Trainer(make_config(workers=workers, epochs=1), tmp_path / str(workers)).run()
    assert untimed(tmp_path / "0") == untimed(tmp_path / "2")


@pytest.mark.parametrize("objective", ["none", "embedding", "lfi"])
def test_every_objective_learns_what_it_is_shown(make_config: MakeConfig, tmp_path: Path, objective: str) -> None:
    config = make_config(
        objective=objective, epochs=12, batch_size=24, learning_rate=1e-2, lambda_int=1.0, augmentation=PLAIN
    )
    Trainer(config, tmp_path / "run").run()
    steps = [line for line in metrics(tmp_path / "run") if line["event"] == "train"]
    assert steps[-1]["task_loss"] < 0.5 * steps[0]["task_loss"]
    if objective != "none":
        assert steps[-1]["interaction_loss"] < 0.9 * steps[0]["interaction_loss"]


def test_the_only_step_of_a_run_trains(make_config: MakeConfig, tmp_path: Path, tiny_targets: Path) -> None:
    config = make_config(objective="none", epochs=1, batch_size=64, weight_decay=0.0)
    Trainer(config, tmp_path / "run").run()
    assert len(metrics(tmp_path / "run")) == 2
    start, end = build_student(config, TargetStore.open(tiny_targets)).state_dict(), weights(tmp_path / "run")
    assert not torch.equal(start["head.weight"], end["head.weight"])


def test_the_rate_rises_and_then_falls(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    step = Trainer._step

    def spy(self: Trainer, batch: Any, optimizer: torch.optim.Optimizer) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(self, batch, optimizer)

    monkeypatch.setattr(Trainer, "_step", spy)
    Trainer(make_config(objective="none", epochs=4, learning_rate=1e-3), tmp_path / "run").run()
    assert len(rates) == 12
    top = int(np.argmax(rates))
    assert top == 3  # the first step after one epoch of warm-up
    assert rates[top] == pytest.approx(1e-3, rel=0.2)
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_controls_see_the_same_images_and_start_from_the_same_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    first = {}
    for maps in ("teacher", "shuffled", "uniform"):
        Trainer(make_config(maps=maps, epochs=1), tmp_path / maps).run()
        first[maps] = metrics(tmp_path / maps)[0]
    assert len({line["task_loss"] for line in first.values()}) == 1
    assert len({line["interaction_loss"] for line in first.values()}) == 3


def test_lambda_zero_is_the_baseline(make_config: MakeConfig, tmp_path: Path) -> None:
    Trainer(make_config(objective="lfi", lambda_int=0.0, epochs=1), tmp_path / "lfi").run()
    Trainer(make_config(objective="none", epochs=1), tmp_path / "none").run()
    ours, plain = (
        [line["task_loss"] for line in metrics(tmp_path / name) if line["event"] == "train"] for name in ("lfi", "none")
    )
    assert ours == pytest.approx(plain, rel=1e-5)


def test_bf16_trains(make_config: MakeConfig, tmp_path: Path) -> None:
    summary = Trainer(make_config(precision="bf16", epochs=1), tmp_path / "run").run()
    assert 0 <= summary["map_seen"] <= 1
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "run").values())


def test_a_convolutional_student_with_batch_norm_trains(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(epochs=1)
    config = replace(config, student=replace(config.student, name="test_resnet", patch_size=None, kwargs={}))
    summary = Trainer(config, tmp_path / "run").run()
    assert [tap["index"] for tap in json.loads((tmp_path / "run" / "config.json").read_text())["taps"]] == [2, 3, 4]
    assert 0 <= summary["map_seen"] <= 1


def test_held_out_domains_are_not_trained_on(make_config: MakeConfig, tmp_path: Path) -> None:
    trainer = Trainer(make_config(hold_out=("grey",), epochs=1), tmp_path / "run")
    domains = trainer.store.index.domains
    assert {domains[position] for position in trainer.positions.tolist()} == {"colour", "outline"}
    trainer.run()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["seen_domains"] == ["colour", "outline"]
    assert config["dataset"]["train_samples"] == len(trainer.positions) < 24


def test_an_unknown_domain_to_hold_out_lists_the_known(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'colour', 'grey', 'outline'.*'sketch'"):
        Trainer(make_config(hold_out=("sketch",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_holding_everything_out_leaves_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no usable sample"):
        Trainer(make_config(hold_out=("grey", "colour", "outline")), tmp_path / "run")


def test_flips_need_the_flipped_view_or_consent(
    make_config: MakeConfig, full_only_targets: Path, tmp_path: Path
) -> None:
    config = make_config(targets=full_only_targets, epochs=1)
    with pytest.raises(ConfigError, match=r"--views full,hflip.*--flip 0.*--mirror-maps"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Trainer(replace(config, mirror_maps=True), tmp_path / "mirrored").run()
    Trainer(replace(config, augmentation=Augmentation(flip=0)), tmp_path / "upright")
    Trainer(replace(config, objective="none"), tmp_path / "none")


def test_a_loss_that_is_not_finite_ends_the_run_clearly(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The loss is (nan|inf).*Lower --learning-rate or --lambda-int"):
        Trainer(make_config(objective="none", learning_rate=1e30, warmup_epochs=0), tmp_path / "run").run()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_finished_run_is_returned_without_training(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = Trainer(make_config(epochs=1), tmp_path / "run").run()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("trained again"))
    assert Trainer(make_config(epochs=1), tmp_path / "run").run() == summary
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match="epochs: 1 there, 2 asked"):
        Trainer(make_config(epochs=2), tmp_path / "run")


def test_an_interrupted_run_starts_again_and_ends_the_same(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(make_config(), tmp_path / "whole").run()
    step, count = Trainer._step, [0]

    def interrupted(self: Trainer, *args: Any) -> Any:
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Trainer(make_config(), tmp_path / "cut").run()
    assert load_run(tmp_path / "cut").summary is None
    Trainer(make_config(), tmp_path / "cut").run()
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")
    again = weights(tmp_path / "cut")
    assert all(torch.equal(value, again[name]) for name, value in weights(tmp_path / "whole").items())


def test_a_changed_image_stops_training_by_name_with_workers_too(
    make_config: MakeConfig, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(BaseProcess, "terminate", lambda self: killed.append(self) or self.kill())
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    (root / "train" / "000000000003.png").write_bytes((root / "train" / "000000000004.png").read_bytes())
    try:
        Trainer(make_config(data_root=root, workers=1), tmp_path / "run").run()
        message = ""
    except CorruptTargetsError as error:
        message = str(error)
    assert "sample 000000000003" in message
    assert "Traceback" not in message
    gc.collect()
    assert not killed, "the loader waited five seconds for a worker that was not told to end"


def test_what_cannot_serve_is_refused_before_anything_is_written(make_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(TargetsError, match="not a targets cache"):
        Trainer(make_config(targets=tmp_path), out)
    with pytest.raises(UnknownNameError, match=r"split of scenes 'dev'.*train, val"):
        Trainer(make_config(val_split="dev"), out)
    with pytest.raises(DatasetError, match="Data root"):
        Trainer(make_config(data_root=tmp_path / "nowhere"), out)
    with pytest.raises(ConfigError, match="device"):
        Trainer(make_config(device="gpu"), out)
    assert not out.exists()


def test_stage_two_never_loads_a_teacher(tiny_targets: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from lfi_pipeline.evaluation import evaluate_run
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.training import TrainConfig, Trainer
student = StudentConfig(name="test_vit", image_size=64)
out = Path({str(tmp_path / "run")!r})
Trainer(TrainConfig(targets=Path({str(tiny_targets)!r}), student=student, epochs=1, device="cpu"), out).run()
evaluate_run(out, device="cpu")
loaded = [name for name in sys.modules if name.startswith(("lfi_pipeline.teachers", "open_clip"))]
assert not loaded, loaded
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "cli", "kernels"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

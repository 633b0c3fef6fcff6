"""Whole tiny runs: what they leave behind, that a seed decides everything, and what they refuse."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lfi_pipeline as lfi
from lfi_pipeline.core.errors import (
    ConfigError,
    CorruptTargetsError,
    DatasetError,
    OutputExistsError,
    RunError,
    TargetsError,
    UnknownNameError,
)
from lfi_pipeline.data.config import Augmentation
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training import RuntimeConfig, TrainConfig, loop, train
from lfi_pipeline.training.checkpoint import load_state
from lfi_pipeline.training.data import Batch, TargetImages
from lfi_pipeline.training.learner import build_student
from lfi_pipeline.training.run_dir import STATE
from lfi_pipeline.training.sampler import Ticket
from lfi_pipeline.training.trainer import Trainer
from tests.lfi_pipeline.training.running import (
    MACHINE,
    assert_same_run,
    metrics,
    train_lines,
    train_one,
    untimed,
    weights,
)

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).resolve().parents[3]
PLAIN = Augmentation(scale=(1, 1), hflip=0)


@pytest.mark.parametrize("together", [1, 2])
def test_a_device_that_is_too_small_is_told_with_what_helps(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nOf the allocated memory ...")

    monkeypatch.setattr(Trainer, "train_step", too_large)
    runs = [(make_config(objective=each), tmp_path / each) for each in ("none", "embedding")[:together]]
    with pytest.raises(
        RunError, match=r"ran out \(CUDA out of memory. Tried to allocate 2 GiB.\).*`batch_size`"
    ) as raised:
        train(runs, MACHINE)
    assert ("fewer students together" in str(raised.value)) == (together == 2)
    monkeypatch.setattr(loop, "PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(torch.OutOfMemoryError):  # one of several that wait for each other
        train(runs, MACHINE)


@pytest.mark.parametrize("objective", ["none", "embedding", "lfi", "lfi+embedding+logits+presence"])
def test_a_run_from_end_to_end(make_config: MakeConfig, tmp_path: Path, objective: str) -> None:
    run, config = tmp_path / objective, make_config(objective=objective)
    summary = train_one(config, run, command="lfi train")
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 6
    assert 0 <= summary["map_seen"] <= 1
    assert 0 <= summary["map_heldout"] <= 1
    assert (summary["parameters"]["queries"] > 0) == ("lfi" in objective)
    assert (summary["parameters"]["terms"] > 0) == ("embedding" in objective)

    lines, steps = metrics(run), train_lines(run)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in steps] == [1, 1, 1, 2, 2, 2]
    for line in steps:
        assert math.isfinite(line["loss"])
        parts = [line[f"{term}_weight"] * line[f"{term}_loss"] for term in config.terms]
        assert line["loss"] == pytest.approx(line["task_loss"] + sum(parts), rel=1e-5)
    validations = [line for line in lines if line["event"] == "val"]
    assert [(line["step"], line["epoch"]) for line in validations] == [(3, 1), (6, 2)]
    assert validations[-1]["map_seen"] == summary["map_seen"]
    assert [line["epoch"] for line in lines if line["event"] == "time"] == [1, 2]

    record = json.loads((run / "config.json").read_text())
    assert record["seen_domains"] == ["colour", "grey", "outline"]
    assert record["dataset"]["train_samples"] == 24
    assert record["dataset"]["val_samples"] == 16
    assert [tap["teacher_layer"] for tap in record["taps"]] == [0, 0, 1]
    assert record["command"] == "lfi train"
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["best.safetensors", "last.safetensors"]  # and no state of a resume


def test_the_seed_decides_everything(make_config: MakeConfig, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_one(make_config(seed=seed, epochs=1), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert untimed(tmp_path / "a") != untimed(tmp_path / "c")


def test_workers_change_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    for workers in (0, 2):
        train_one(make_config(epochs=1), tmp_path / str(workers), replace(MACHINE, workers=workers))
    assert_same_run(tmp_path / "0", tmp_path / "2")


@pytest.mark.parametrize("objective", ["none", "embedding", "lfi"])
def test_every_objective_learns_what_it_is_shown(make_config: MakeConfig, tmp_path: Path, objective: str) -> None:
    weight = {} if objective == "none" else {"weight": {objective: 1.0}}
    config = make_config(objective=objective, epochs=12, batch_size=24, lr=1e-2, augmentation=PLAIN, **weight)
    train_one(config, tmp_path / "run")
    first, *_, last = train_lines(tmp_path / "run")
    assert last["task_loss"] < 0.5 * first["task_loss"]
    if objective != "none":
        assert last[f"{objective}_loss"] < 0.9 * first[f"{objective}_loss"]


def test_the_only_step_of_a_run_trains(make_config: MakeConfig, tmp_path: Path, tiny_targets: Path) -> None:
    config = make_config(objective="none", epochs=1, batch_size=64, weight_decay=0.0)
    train_one(config, tmp_path / "run")
    assert len(train_lines(tmp_path / "run")) == 1
    start = build_student(config, TargetStore.open(tiny_targets), "multi-label").state_dict()
    assert not torch.equal(start["head.weight"], weights(tmp_path / "run")["head.weight"])


def test_controls_see_the_same_images_and_start_from_the_same_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    first = {}
    for maps in ("teacher", "shuffled", "uniform"):
        train_one(make_config(maps=maps, epochs=1), tmp_path / maps)
        first[maps] = train_lines(tmp_path / maps)[0]
    assert len({line["task_loss"] for line in first.values()}) == 1
    assert len({line["lfi_loss"] for line in first.values()}) == 3


@pytest.mark.parametrize("objective", ["lfi", "embedding", "logits", "lfi+presence"])
def test_a_term_of_weight_zero_is_the_baseline(make_config: MakeConfig, tmp_path: Path, objective: str) -> None:
    off = dict.fromkeys(objective.split("+"), 0.0)
    train_one(make_config(objective=objective, weight=off, epochs=1), tmp_path / "term")
    train_one(make_config(objective="none", epochs=1), tmp_path / "none")
    ours, plain = ([line["task_loss"] for line in train_lines(tmp_path / name)] for name in ("term", "none"))
    assert ours == pytest.approx(plain, rel=1e-5)


def test_a_weight_that_falls_reaches_the_loss(make_config: MakeConfig, tmp_path: Path) -> None:
    train_one(make_config(objective="lfi", weight={"lfi": "0.5:cosine"}), tmp_path / "run")
    found = [(line["loss"] - line["task_loss"]) / line["lfi_loss"] for line in train_lines(tmp_path / "run")]
    expected = [0.5 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_bf16_trains(make_config: MakeConfig, tmp_path: Path) -> None:
    train_one(make_config(precision="bf16", epochs=1), tmp_path / "half")
    train_one(make_config(epochs=1), tmp_path / "full")
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "half").values())
    half, full = ([line["loss"] for line in train_lines(tmp_path / name)] for name in ("half", "full"))
    assert half != full
    assert half == pytest.approx(full, rel=0.02)


def test_a_convolutional_student_with_batch_norm_trains(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(epochs=1)
    config = replace(config, student=replace(config.student, name="test_resnet", patch_size=None, kwargs={}))
    summary = train_one(config, tmp_path / "run")
    assert [tap["index"] for tap in json.loads((tmp_path / "run" / "config.json").read_text())["taps"]] == [2, 3, 4]
    assert 0 <= summary["map_seen"] <= 1


def test_a_batch_norm_that_sees_one_value_is_refused_before_the_first_step(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(epochs=1, batch_size=1, objective="none")
    student = replace(config.student, name="test_resnet", patch_size=None, image_size=32, kwargs={})
    with pytest.raises(ConfigError, match=r"A batch norm needs two values a channel.*of 32 by 32 pixels.*larger batch"):
        train_one(replace(config, student=student), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train_one(replace(config, student=replace(student, image_size=64)), tmp_path / "larger")


def test_a_seed_that_no_generator_takes_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"seed must be"):
        make_config(seed=2**128)


def test_pure_distillation_has_no_task_and_no_scores(make_config: MakeConfig, tmp_path: Path) -> None:
    summary = train_one(make_config(task="none", objective="lfi+embedding"), tmp_path / "run")
    assert "map_seen" not in summary
    assert not [name for name in weights(tmp_path / "run") if name.startswith("head")]
    lines = metrics(tmp_path / "run")
    assert {line["event"] for line in lines} == {"train", "time"}
    assert all("task_loss" not in line and line["lfi_loss"] > 0 for line in train_lines(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()


def test_held_out_domains_are_not_trained_on(make_config: MakeConfig, tmp_path: Path, tiny_targets: Path) -> None:
    train_one(make_config(hold_out=("grey",), epochs=1), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["seen_domains"] == ["colour", "outline"]
    kept = [domain for domain in TargetStore.open(tiny_targets).index.domains if domain != "grey"]
    assert record["dataset"]["train_samples"] == len(kept) < 24


def test_a_finished_run_is_returned_without_training(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = train_one(make_config(epochs=1), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("trained again"))
    assert train_one(make_config(epochs=1), tmp_path / "run") == summary
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match="epochs: 1 there, 2 asked"):
        train_one(make_config(epochs=2), tmp_path / "run")


def test_an_unknown_domain_to_hold_out_lists_the_known(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'colour', 'grey', 'outline'.*'sketch'"):
        train_one(make_config(hold_out=("sketch",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_holding_everything_out_leaves_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no usable sample"):
        train_one(make_config(hold_out=("grey", "colour", "outline")), tmp_path / "run")


def test_flips_need_the_flipped_view_or_consent(
    make_config: MakeConfig, full_only_targets: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"targets": full_only_targets, "epochs": 1}
    with pytest.raises(ConfigError, match=r"`views=\['full', 'hflip'\]`.*`hflip=0`.*`mirror_maps=True`"):
        train_one(make_config(**asked), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train_one(make_config(**asked, mirror_maps=True), tmp_path / "mirrored")
    train_one(make_config(**asked, hflip=0.0), tmp_path / "upright")
    train_one(make_config(**asked, objective="none"), tmp_path / "none")


def test_what_cannot_serve_is_refused_before_anything_is_written(make_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(TargetsError, match="not a targets cache"):
        train_one(make_config(targets=tmp_path), out)
    with pytest.raises(UnknownNameError, match=r"split of scenes 'dev'.*train, val"):
        train_one(make_config(val_split="dev"), out)
    with pytest.raises(DatasetError, match="Data root"):
        train_one(make_config(data_root=tmp_path / "nowhere"), out)
    with pytest.raises(ConfigError, match="device"):
        train_one(make_config(), out, RuntimeConfig(device="gpu"))
    with pytest.raises(ConfigError, match=r"2 images cannot be shared by 2.*4 images or more"):
        train_one(make_config(batch_size=2, grad_accum_steps=2), out)
    with pytest.raises(ConfigError, match="exactly one label"):
        train_one(make_config(task="classification"), out)
    assert not out.exists()


def test_a_changed_image_stops_training_by_name_with_workers_too(
    make_config: MakeConfig, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(BaseProcess, "terminate", lambda self: killed.append(self) or self.kill())
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    (root / "train" / "000000000003.png").write_bytes((root / "train" / "000000000004.png").read_bytes())
    try:
        train_one(make_config(data_root=root), tmp_path / "run", replace(MACHINE, workers=1))
        message = ""
    except CorruptTargetsError as error:
        message = str(error)
    assert "sample 000000000003" in message
    assert "Traceback" not in message
    gc.collect()
    assert not killed, "the loader waited five seconds for a worker that was not told to end"


@pytest.mark.parametrize("changes", [{"seed": 1}, {"task": "none"}, {"val_split": "train"}, {"grad_accum_steps": 2}])
def test_runs_that_cannot_share_a_read_are_refused(
    make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    runs = [(make_config(), tmp_path / "a"), (make_config(**changes), tmp_path / "b")]
    with pytest.raises(ConfigError, match="fed from one read"):
        train(runs, MACHINE)
    assert not list(tmp_path.iterdir())


def test_two_runs_cannot_share_a_directory(make_config: MakeConfig, tmp_path: Path) -> None:
    runs = [(make_config(), tmp_path / "a"), (make_config(objective="none"), tmp_path / "b" / ".." / "a")]
    with pytest.raises(ConfigError, match="directory of its own"):
        train(runs, MACHINE)
    assert not list(tmp_path.iterdir())


def test_the_only_advice_of_a_run_that_waits_is_given_once(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "advice", lambda spent, **_: "take more workers")
    train_one(make_config(objective="none"), tmp_path / "run")
    assert capsys.readouterr().err.count("take more workers") == 1


def test_stage_two_never_loads_a_teacher(tiny_targets: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from lfi_pipeline.evaluation import EvaluationConfig, evaluate_runs
from lfi_pipeline.evaluation.classification import ClassificationConfig
from lfi_pipeline.training import RuntimeConfig, train
from lfi_pipeline.core.options import build
from lfi_pipeline.training.config import TrainConfig
out = Path({str(tmp_path / "run")!r})
settings = dict(targets={str(tiny_targets)!r}, student="test_vit", image_size=64, epochs=1, batch_size=8)
config = build(TrainConfig, settings)
train([(config, out)], RuntimeConfig(device="cpu"))
evaluate_runs([out], dict(classification=ClassificationConfig()), EvaluationConfig(device="cpu"))
loaded = [name for name in sys.modules if name.startswith(("lfi_pipeline.teachers", "open_clip"))]
assert not loaded, loaded
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "cli", "kernels"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# torch leaves files open where a loader process dies between naming a batch and handing it over.
@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loader_process_that_dies_is_one_error_and_loses_nothing(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(objective="none")
    trainer, read = os.getpid(), TargetImages.__getitems__

    def dies_in_the_second_epoch(self: TargetImages, tickets: Sequence[Ticket]) -> Batch:
        if os.getpid() != trainer and tickets[0][0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, tickets)

    with monkeypatch.context() as patch:
        patch.setattr(TargetImages, "__getitems__", dies_in_the_second_epoch)
        with pytest.raises(RunError, match=r"loader process died.*run the same command again with fewer `workers`"):
            train([(config, tmp_path / "run")], replace(MACHINE, workers=1))
    assert 1 <= load_state(tmp_path / "run" / STATE)["step"] <= 3  # the loader is ahead of the training
    train_one(config, tmp_path / "run")
    train_one(config, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_pure_distillation_needs_no_validation_split(make_config: MakeConfig, tmp_path: Path) -> None:
    summary = train_one(make_config(task="none", val_split="there is none", epochs=1), tmp_path / "run")
    assert summary["steps"] == 3


def test_a_run_may_do_without_a_validation_split(make_config: MakeConfig, tmp_path: Path) -> None:
    summary = train_one(make_config(val_split="none", epochs=1), tmp_path / "run")
    assert summary["steps"] == 3
    assert "map_seen" not in summary
    with pytest.raises(ConfigError, match=r"must have a split to be scored on.*val_split 'none'.*'train-0.1'"):
        lfi.evaluate(tmp_path / "run", device="cpu")

"""Runs that were stopped, by a kill or a request, end as if they had not been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, OutputExistsError
from lfi_pipeline.core.io import temporary
from lfi_pipeline.core.options import flatten
from lfi_pipeline.students import Student
from lfi_pipeline.training import RuntimeConfig, TrainConfig, train
from lfi_pipeline.training.monitor import EpochClock
from lfi_pipeline.training.trainer import MicroBatch, Trainer
from tests.lfi_pipeline.training.running import MACHINE, assert_same_run, metrics, train_one

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("killing.py")
OFTEN = replace(MACHINE, checkpoint_minutes=0)
EVERYTHING: dict[str, Any] = {
    "objective": "lfi+embedding+presence",
    "student_arg": {"depth": 3, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.2},
    "weight": {"lfi": "0.3:cosine"},
    "ema": 0.9,
    "grad_accum_steps": 2,
    "mixup": 0.4,
    "cutmix": 1.0,
    "randaugment": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"opt": "sgd"},
    "everything": EVERYTHING,
    "queries": {
        "head": "queries",
        "objective": "lfi+embedding",
        "mix": "maps",
        "cutmix": 1.0,
        "mixup_prob": 0.5,
        "grad_accum_steps": 2,
        "epochs": 8,  # 24 steps: gradients are measured at the first and at the 21st
    },
}


def config_for(make_config: MakeConfig, name: str) -> TrainConfig:
    changes = dict(CASES[name])
    config = make_config(**changes)
    arguments = changes.get("student_arg", config.student.kwargs)
    return replace(config, student=replace(config.student, kwargs=arguments))


def test_killed_at_any_moment_a_run_ends_the_same(make_config: MakeConfig, tmp_path: Path) -> None:
    runs = []
    for name in CASES:
        config = config_for(make_config, name)
        train_one(config, tmp_path / "whole" / name)
        runs.append([flatten(config), str(tmp_path / "killed" / name)])
    (tmp_path / "plan.json").write_text(json.dumps({"seed": 5, "kills": 3, "runs": runs}))
    path = os.pathsep.join(str(ROOT / part) for part in (".", "cli", "kernels"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "plan.json")],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(len(each) for each in kills) >= len(CASES)
    for name in CASES:
        assert_same_run(tmp_path / "whole" / name, tmp_path / "killed" / name)
        assert not (tmp_path / "killed" / name / "checkpoints" / "state.safetensors").exists()


class Stopped(Exception):
    """Stands for a kill: nothing catches it, nothing is saved after it."""


def stop_before(monkeypatch: pytest.MonkeyPatch, run: str, step: int) -> None:
    """Let the run in the directory of that name be killed before its step `step` (from 0)."""
    take = Trainer.train_step

    def until(self: Trainer, pieces: Sequence[MicroBatch], clock: EpochClock) -> dict[str, float]:
        if self.out.name == run and self.step == step:
            raise Stopped
        return take(self, pieces, clock)

    monkeypatch.setattr(Trainer, "train_step", until)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["everything", "sgd"])
def test_stopped_before_a_step_a_run_ends_the_same(
    make_config: MakeConfig, tmp_path: Path, name: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(make_config, name)
    train_one(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_before(patch, "cut", step)
        with pytest.raises(Stopped):
            train_one(config, tmp_path / "cut", OFTEN)
    assert (tmp_path / "cut" / "checkpoints" / "state.safetensors").is_file()
    train_one(config, tmp_path / "cut", replace(OFTEN, workers=1))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that torch.compile makes of students, run as they are: a compiler takes half a minute."""
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(Student, "compile_parts", partialmethod(Student.compile_parts, backend=backend))
    return graphs


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by the tracer itself
@pytest.mark.parametrize("name", ["everything", "sgd"])
def test_a_run_may_be_compiled_and_go_on_without(
    make_config: MakeConfig, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, traced: list[Any]
) -> None:
    config = config_for(make_config, name)
    train_one(config, tmp_path / "whole")
    assert traced == []
    with monkeypatch.context() as patch:
        stop_before(patch, "cut", 3)
        with pytest.raises(Stopped):
            train_one(config, tmp_path / "cut", replace(OFTEN, compile=True))
    assert traced
    train_one(config, tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_compiling_without_a_compiler_is_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"compile needs a C\+\+ compiler .* none is on the PATH"):
        train_one(make_config(), tmp_path / "run", replace(OFTEN, compile=True))


def test_a_resume_takes_only_the_steps_that_are_left(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    take = Trainer.train_step

    def counted(self: Trainer, pieces: Sequence[MicroBatch], clock: EpochClock) -> dict[str, float]:
        taken.append(self.step)
        return take(self, pieces, clock)

    monkeypatch.setattr(Trainer, "train_step", counted)
    with monkeypatch.context() as patch:
        stop_before(patch, "run", 4)
        with pytest.raises(Stopped):
            train_one(make_config(), tmp_path / "run", OFTEN)
    assert taken == [0, 1, 2, 3]
    train_one(make_config(), tmp_path / "run")
    assert taken == [0, 1, 2, 3, 4, 5]


STUDENTS: dict[str, dict[str, Any]] = {
    "none": {"objective": "none"},
    "text": {"objective": "lfi+presence", "image_size": 48, "ema": 0.9},
    "queries": {"objective": "lfi+embedding", "head": "queries"},
}


def several(make_config: MakeConfig, folder: Path) -> list[tuple[TrainConfig, Path]]:
    runs = []
    for name, changes in STUDENTS.items():
        config = make_config(mixup=0.3, **changes)
        student = replace(config.student, image_size=changes.get("image_size", 64))
        runs.append((replace(config, student=student), folder / name))
    return runs


@pytest.fixture
def alone(make_config: MakeConfig, tmp_path: Path) -> Path:
    """Each of `STUDENTS` trained by itself."""
    for run in several(make_config, tmp_path / "alone"):
        train([run], MACHINE)
    return tmp_path / "alone"


def assert_same_runs(one: Path, other: Path) -> None:
    for name in STUDENTS:
        assert_same_run(one / name, other / name)


def test_students_fed_from_one_read_are_those_trained_alone(
    make_config: MakeConfig, tmp_path: Path, alone: Path
) -> None:
    summaries = train(several(make_config, tmp_path / "together"), MACHINE)
    assert_same_runs(alone, tmp_path / "together")
    scores = [json.loads((alone / name / "summary.json").read_text())["map_seen"] for name in STUDENTS]
    assert [summary["map_seen"] for summary in summaries] == scores


def test_students_that_stopped_at_different_steps_go_on_together(
    make_config: MakeConfig, tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = several(make_config, tmp_path / "together")
    for run, step in zip(runs[1:], (2, 4), strict=True):
        with monkeypatch.context() as patch:
            stop_before(patch, run[1].name, step)
            with pytest.raises(Stopped):
                train([run], OFTEN)
    train(runs[:1], MACHINE)  # finished already
    train(runs, MACHINE)
    assert_same_runs(alone, tmp_path / "together")


def test_students_stopped_within_one_step_go_on_together(
    make_config: MakeConfig, tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = several(make_config, tmp_path / "together")
    with monkeypatch.context() as patch:
        stop_before(patch, "text", 2)  # after `none` took its third step, before the others did
        with pytest.raises(Stopped):
            train(runs, OFTEN)
    train(runs, MACHINE)
    assert_same_runs(alone, tmp_path / "together")


def test_a_run_killed_between_its_last_step_and_its_summary_ends_the_same(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    whole = train_one(make_config(), tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "lfi_pipeline.training.run_writer.RunRecord.finish", lambda self: (_ for _ in ()).throw(Stopped())
        )
        with pytest.raises(Stopped):
            train_one(make_config(), tmp_path / "cut")
    again = train_one(make_config(), tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    clocks = ("seconds", "step_ms")
    assert {k: v for k, v in again.items() if k not in clocks} == {k: v for k, v in whole.items() if k not in clocks}


@pytest.mark.parametrize("moment", ["make_place", "write_json", "write_config"])
def test_a_run_killed_at_its_very_beginning_starts_again(make_config: MakeConfig, tmp_path: Path, moment: str) -> None:
    def torn(place: Path, *_: object) -> None:
        if moment != "write_config":
            (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        if moment == "write_json":
            temporary(tmp_path / "run" / "config.json").write_text("{")
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        name = "make_place" if moment == "write_json" else moment
        patch.setattr(f"lfi_pipeline.training.run_writer.{name}", torn)
        with pytest.raises(Stopped):
            train_one(make_config(epochs=1), tmp_path / "run")
    assert train_one(make_config(epochs=1), tmp_path / "run")["steps"] == 3


def test_a_student_that_cannot_be_built_leaves_its_place_free(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(epochs=1)
    with pytest.raises(ValueError, match="no_such_model"):
        train_one(replace(config, student=replace(config.student, name="no_such_model")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train_one(config, tmp_path / "run")


def test_a_cache_that_moved_goes_on_and_another_is_refused(
    make_config: MakeConfig, tiny_targets: Path, tiny_val_targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_one(make_config(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_before(patch, "run", 2)
        with pytest.raises(Stopped):
            train_one(make_config(), tmp_path / "run", OFTEN)
    with pytest.raises(OutputExistsError, match="content of the cache"):
        train_one(make_config(targets=tiny_val_targets), tmp_path / "run")
    with pytest.raises(OutputExistsError, match=r"lr: 0\.0005 there, 0\.1 asked; seed: 0 there, 3 asked\)"):
        train_one(make_config(seed=3, lr=0.1), tmp_path / "run")
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_targets)
    train_one(make_config(targets=moved), tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_ctrl_c_finishes_the_step_and_saves(make_config: MakeConfig, tmp_path: Path) -> None:
    train_one(make_config(), tmp_path / "whole")
    take = Trainer.train_step

    def interrupted(self: Trainer, pieces: Sequence[MicroBatch], clock: EpochClock) -> dict[str, float]:
        if self.step == 3:
            os.kill(os.getpid(), 2)
        return take(self, pieces, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_one(make_config(), tmp_path / "run", RuntimeConfig(device="cpu", track=()))
    assert [line["step"] for line in metrics(tmp_path / "run")][-1] == 4
    train_one(make_config(), tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")

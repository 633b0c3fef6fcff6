"""The parts of `lfi bench train` on tiny sizes, and what their checks find."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from lfi_pipeline.benchmarks import Outcome, training_step
from lfi_pipeline.benchmarks import train as training_online
from lfi_pipeline.benchmarks import train as training_students
from lfi_pipeline.benchmarks import training_step as training_parameters
from lfi_pipeline.benchmarks.config import TrainBenchConfig
from lfi_pipeline.benchmarks.train import bench_train, built_students
from lfi_pipeline.core.errors import BenchmarkError, ConfigError, UnknownNameError
from lfi_pipeline.exporting.check import PlainModel
from lfi_pipeline.students import Features, Student, StudentConfig
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.maps import Cut, MapResampler
from lfi_pipeline.training.trainer import Trainer

TINY = TrainBenchConfig(device="cpu").tiny()
STUDENT = built_students(TINY)[0]
NAME = STUDENT.name
CPU = torch.device("cpu")


def values(outcome: Outcome, metric: str) -> dict[str, float]:
    found = {each.case: each.value for each in outcome.measurements if each.metric == metric}
    assert all(np.isfinite(value) and value >= 0 for value in found.values())
    return found


def step() -> Outcome:
    return training_step.bench_step(STUDENT, batch_size=2, rounds=2, device=CPU, maps_shape=TINY.maps_shape)


def students() -> Outcome:
    return training_students.bench_students(STUDENT, steps=2, batch_size=2, workers=(0,), rounds=1, device=CPU)


def online() -> Outcome:
    return training_online.bench_online(
        STUDENT, teacher="tiny", kind="relevance", layers=1, batch_size=2, rounds=1, device=CPU
    )


@pytest.fixture
def tiny(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_online, "load_teacher", lambda name, **_: tiny_teacher)


def test_step_says_where_the_time_of_each_objective_goes() -> None:
    outcome = step()
    whole = values(outcome, "step")
    assert list(whole) == [
        f"{NAME}, {case}" for case in ("none", "lfi", "embedding", "lfi, query head", "bare timm loop")
    ]
    ratios = values(outcome, "over none")
    assert ratios[f"{NAME}, none"] == 1.0
    assert set(values(outcome, "processor time over none")) == set(whole)
    bare = f"{NAME}, bare timm loop"
    assert set(values(outcome, "over a bare timm loop")) == set(whole)
    assert values(outcome, "over a bare timm loop")[bare] == 1.0
    phases = [values(outcome, phase) for phase in ("targets cut", "forward", "backward", "optimizer")]
    del whole[bare]
    for case, milliseconds in whole.items():
        assert 0 < sum(phase[case] for phase in phases) < 1.5 * milliseconds
    assert phases[0][f"{NAME}, lfi"] > 10 * phases[0][f"{NAME}, none"]
    assert [(each.most, each.value) for each in outcome.asked] == [(1.10, ratios[f"{NAME}, lfi"])]


def test_a_step_is_compiled_in_the_precision_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(Student, "compile_parts", lambda self: compiled.append(self))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append((self, options)))
    precise: list[str] = []
    heads: list[str] = []
    right = training_step.make_run

    def make_run(*args: Any, **options: Any) -> Trainer:
        precise.append(options["precision"])
        run = right(*args, **options)
        heads.append(run.config.head)
        return run

    monkeypatch.setattr(training_step, "make_run", make_run)
    config = dataclasses.replace(TINY, what=("step",), precision="bf16", compile=True)
    outcome = bench_train(config)
    assert precise == ["bf16"] * 4
    assert heads == ["linear", "linear", "linear", TrainConfig.__dataclass_fields__["head"].default]
    assert [each[1] for each in compiled if isinstance(each, tuple)] == [{"dynamic": False}]
    assert sum(isinstance(each, Student) for each in compiled) == 4
    assert all(each.shape.endswith("bf16, compiled") for each in outcome.measurements if each.metric == "step")


def test_a_bare_loop_trains_the_same_model_with_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[training_step._Bare] = []
    right = training_step._Bare.__init__

    def keep(self: training_step._Bare, *args: Any, **options: Any) -> None:
        right(self, *args, **options)
        self.before = [each.detach().clone() for each in self.model.parameters()]  # type: ignore[attr-defined]
        made.append(self)

    monkeypatch.setattr(training_step._Bare, "__init__", keep)
    step()
    (bare,) = made
    after = list(bare.model.parameters())
    assert sum(each.numel() for each in after) > 0
    assert not any(torch.equal(one, other) for one, other in zip(bare.before, after, strict=True))  # type: ignore[attr-defined]
    assert bare.model(torch.zeros(1, 3, 32, 32)).shape == (1, bare.labels.shape[1])


def test_step_finds_queries_that_change_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Student.forward

    def wrong(self: Student, images: torch.Tensor, supervision: Any = None, **options: bool) -> Features:
        features = right(self, images, supervision, **options)
        return dataclasses.replace(features, pooled=features.pooled + (supervision is not None))

    monkeypatch.setattr(Student, "forward", wrong)
    with pytest.raises(BenchmarkError, match="lfi must leave the backbone's output"):
        step()


@pytest.mark.parametrize(("factor", "message"), [(2.0, "must sum to 1 or 0"), (0.0, "must not all be empty")])
def test_step_finds_targets_that_are_no_distributions(
    factor: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = MapResampler.on

    def wrong(self: MapResampler, grid: tuple[int, int]) -> Cut:
        cut = right(self, grid)
        return dataclasses.replace(cut, maps=factor * cut.maps)

    monkeypatch.setattr(MapResampler, "on", wrong)
    with pytest.raises(BenchmarkError, match=message):
        step()


def test_a_step_that_fails_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "train_step", lambda self, pieces, clock: {"total": float("nan")})
    with pytest.raises(BenchmarkError, match="A step must succeed"):
        step()


@pytest.mark.usefixtures("tiny")
def test_online_asks_the_teacher_in_every_step_and_cached_never(
    tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    right = tiny_teacher.interaction_maps
    monkeypatch.setattr(tiny_teacher, "interaction_maps", lambda *a, **k: asked.append(1) or right(*a, **k))
    outcome = online()
    assert len(asked) == 4  # for the cache, against the cache, for the loss, and in the one round that is timed
    assert set(values(outcome, "step")) == {f"{NAME}, cached targets", f"{NAME}, teacher online"}
    assert values(outcome, "online over cached")[f"{NAME}, cached targets"] == 1.0
    assert outcome.asked == ()


@pytest.mark.usefixtures("tiny")
def test_online_finds_a_cache_of_other_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    right = TargetStore.read_many
    monkeypatch.setattr(
        TargetStore, "read_many", lambda self, positions, view="full": right(self, np.roll(positions, 1), view)
    )
    with pytest.raises(BenchmarkError, match="Cached maps must be the teacher's"):
        online()


def test_students_share_a_read_or_have_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    right = training_students.feed
    monkeypatch.setattr(training_students, "feed", lambda runs, *a, **k: fed.append(len(runs)) or right(runs, *a, **k))
    outcome = students()
    assert fed == [3, 1, 1, 1, 1, 3]  # checked in company and alone; then a read each, then one read
    case = f"{NAME} at 32 px, 0 workers"
    together, apart = (values(outcome, f"3 {how}")[case] for how in ("from one read", "with a read each"))
    assert values(outcome, "one read over a read each")[case] == pytest.approx(together / apart)
    assert values(outcome, "reading alone, one process")[case] > 0
    assert outcome.asked[0].least == 1.5


def test_students_find_one_that_changes_what_the_others_see(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Trainer.train_step

    def wrong(self: Trainer, pieces: Any, clock: Any) -> dict[str, float]:
        losses = right(self, pieces, clock)
        for images in pieces[0].batch.images.values():
            images += 1
        return losses

    monkeypatch.setattr(Trainer, "train_step", wrong)
    with pytest.raises(BenchmarkError, match="must not depend on which others"):
        students()


def test_parameters_are_counted_by_hand() -> None:
    outcome = training_parameters.bench_parameters(STUDENT)
    added = values(outcome, "added in training")
    blocks = 3 * (2 * 128 * 128 + 2 * 32 * 128)
    assert added == {
        f"{NAME}, lfi": 768 * 128 + 128 + blocks,
        f"{NAME}, embedding": 32 * 768 + 768,
    }
    assert set(values(outcome, "left in the exported model").values()) == {0}
    assert [each.met for each in outcome.asked] == [False, True]  # a tiny backbone, and nothing left of the queries


def test_parameters_show_what_an_export_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_parameters, "plain_model", lambda student: PlainModel(student, "none"))
    assert not training_parameters.bench_parameters(STUDENT).asked[1].met


def test_parts_are_joined_and_the_load_is_told() -> None:
    outcome = bench_train(dataclasses.replace(TINY, what=("parameters", "students")))
    metrics = [each.metric for each in outcome.measurements]
    assert metrics[0] == "added in training"
    assert metrics[-2:] == ["reading alone, one process", "load average, 1 minute"]
    assert outcome.checked.count(";") == 1
    assert len(outcome.asked) == 3


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="online, parameters, step, students"):
        TrainBenchConfig(what=("memory",))
    with pytest.raises(ConfigError, match="steps must be 1 or more, got 0"):
        TrainBenchConfig(steps=0)
    with pytest.raises(ConfigError, match="workers must be 0 or more"):
        TrainBenchConfig(workers=(-1,))
    with pytest.raises(ConfigError, match="students must name at least one"):
        TrainBenchConfig(students=())
    assert [each.name for each in built_students(TrainBenchConfig())] == [
        "vit_tiny_patch16_224",
        "vit_small_patch16_224",
    ]
    assert StudentConfig() == built_students(TrainBenchConfig())[0]

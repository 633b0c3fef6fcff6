"""A sweep is carried out: in groups, resumed, and not stopped by one run. The loop is stood in."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, RunLockedError
from lfi_pipeline.core.options import build
from lfi_pipeline.training.config import RuntimeConfig, TrainConfig
from lfi_pipeline.training.sweep import PlannedRun
from lfi_pipeline.training.sweep_run import check_runs, groups_of, run_sweep


def planned(out: Path, name: str, **settings: Any) -> PlannedRun:
    return PlannedRun(folder=out / name, config=build(TrainConfig, {"targets": "shards"} | settings))


@pytest.fixture
def plan(tmp_path: Path) -> list[PlannedRun]:
    """Two seeds (two streams) of three objectives each."""
    return [
        planned(tmp_path, f"{objective}-{seed}", objective=objective, seed=seed)
        for objective in ("none", "lfi", "embedding")
        for seed in (0, 1)
    ]


class Loop:
    """Stands in for `training.train`: finishes runs, but for those in `failing`."""

    def __init__(self, *failing: str) -> None:
        self.failing = set(failing)
        self.calls: list[list[str]] = []

    def __call__(
        self, runs: Sequence[tuple[TrainConfig, Path]], machine: RuntimeConfig, *, command: str = ""
    ) -> list[Mapping[str, Any]]:
        names = [folder.name for _, folder in runs]
        self.calls.append(names)
        assert len({config.data for config, _ in runs}) == 1
        assert (machine, command) == (RuntimeConfig(workers=3), "lfi sweep x")
        if bad := self.failing & set(names):
            raise ConfigError(f"no good: {sorted(bad)}")
        for _, folder in runs:
            folder.mkdir()
            (folder / "summary.json").write_text("{}")
        return [{} for _ in runs]


def sweep(
    plan: Sequence[PlannedRun], out: Path, loop: Loop, together: int = 1
) -> tuple[dict[str, str | None], list[str]]:
    told: list[str] = []
    outcomes = run_sweep(
        plan, out, RuntimeConfig(workers=3), train=loop, together=together, command="lfi sweep x", tell=told.append
    )
    return {outcome.run.name: outcome.error for outcome in outcomes}, told


def states(out: Path) -> dict[str, str]:
    return {run["name"]: run["state"] for run in json.loads((out / "sweep.json").read_text())["runs"]}


def test_one_by_one_in_order_of_streams(plan: list[PlannedRun], tmp_path: Path) -> None:
    loop = Loop()
    errors, told = sweep(plan, tmp_path, loop)
    assert loop.calls == [["none-0"], ["lfi-0"], ["embedding-0"], ["none-1"], ["lfi-1"], ["embedding-1"]]
    assert errors == {run.name: None for run in plan}
    assert told[2] == "run 3 of 6: embedding-0"
    assert set(states(tmp_path).values()) == {"finished"}


@pytest.mark.parametrize(("together", "sizes"), [(1, [1] * 6), (2, [2, 1, 2, 1]), (3, [3, 3]), (99, [3, 3])])
def test_groups_share_a_stream_and_have_a_limit(plan: list[PlannedRun], together: int, sizes: list[int]) -> None:
    groups = groups_of(plan, together)
    assert [len(group) for group in groups] == sizes
    assert all(len({run.config.data for run in group}) == 1 for group in groups)
    assert sorted(run.name for group in groups for run in group) == sorted(run.name for run in plan)


def test_finished_runs_are_left_alone(plan: list[PlannedRun], tmp_path: Path) -> None:
    for run in (plan[0], plan[3]):
        run.folder.mkdir()
        (run.folder / "summary.json").write_text("{}")
    loop = Loop()
    _, told = sweep(plan, tmp_path, loop, together=3)
    assert loop.calls == [["none-1", "embedding-1"], ["lfi-0", "embedding-0"]]
    assert told == [
        "2 of 6 runs are finished already",
        "runs 3-4 of 6: none-1, embedding-1",
        "runs 5-6 of 6: lfi-0, embedding-0",
    ]
    again = Loop()
    errors, told = sweep(plan, tmp_path, again, together=3)
    assert again.calls == []
    assert told == ["6 of 6 runs are finished already"]
    assert errors == {run.name: None for run in plan}


def test_a_run_that_fails_is_recorded_and_the_others_go_on(plan: list[PlannedRun], tmp_path: Path) -> None:
    loop = Loop("lfi-0")
    errors, told = sweep(plan, tmp_path, loop)
    assert errors == {run.name: None for run in plan} | {"lfi-0": "no good: ['lfi-0']"}
    assert len(loop.calls) == 6
    assert "lfi-0 failed: no good: ['lfi-0']" in told
    assert states(tmp_path) == {run.name: "finished" for run in plan} | {"lfi-0": "failed"}
    mended = Loop()
    errors, _ = sweep(plan, tmp_path, mended)
    assert mended.calls == [["lfi-0"]]
    assert set(errors.values()) == {None}
    assert states(tmp_path)["lfi-0"] == "finished"


def test_a_group_that_fails_goes_on_one_by_one(plan: list[PlannedRun], tmp_path: Path) -> None:
    loop = Loop("lfi-0")
    errors, _ = sweep(plan, tmp_path, loop, together=3)
    group = ["none-0", "lfi-0", "embedding-0"]
    assert loop.calls == [group, ["none-0"], ["lfi-0"], ["embedding-0"], ["none-1", "lfi-1", "embedding-1"]]
    assert [name for name, error in errors.items() if error] == ["lfi-0"]


def test_what_a_failed_group_has_finished_is_not_trained_again(plan: list[PlannedRun], tmp_path: Path) -> None:
    class Ends(Loop):
        """Fails after the other runs of the group have ended, as the loop does for a loss that explodes."""

        def __call__(
            self, runs: Sequence[tuple[TrainConfig, Path]], machine: RuntimeConfig, *, command: str = ""
        ) -> list[Mapping[str, Any]]:
            good = [run for run in runs if run[1].name not in self.failing]
            super().__call__(good, machine, command=command)
            if len(good) < len(runs):
                raise ConfigError("lfi-0: the loss is nan")
            return []

    loop = Ends("lfi-0")
    errors, _ = sweep(plan, tmp_path, loop, together=3)
    assert len(loop.calls) == 2
    assert {name: error for name, error in errors.items() if error} == {"lfi-0": "lfi-0: the loss is nan"}


def test_a_read_is_shared_only_where_its_batches_are_cut_alike(tmp_path: Path) -> None:
    plan = [
        planned(tmp_path, "a"),
        planned(tmp_path, "b", grad_accum_steps=2),
        planned(tmp_path, "c", val_split="test"),
    ]
    assert [len(group) for group in groups_of([*plan, planned(tmp_path, "d")], 9)] == [2, 1, 1]


def test_what_is_not_ours_is_not_swallowed(plan: list[PlannedRun], tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> list[Mapping[str, Any]]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_sweep(plan, tmp_path, RuntimeConfig(), train=broken)


def test_what_a_failed_run_held_is_free_before_the_next(plan: list[PlannedRun], tmp_path: Path) -> None:
    class Students(list[object]):
        """Holds itself, as a student's hooks do."""

    class Fails(Loop):
        def __call__(self, runs: Any, machine: RuntimeConfig, *, command: str = "") -> list[Mapping[str, Any]]:
            assert all(held() is None for held in holds)
            students = Students()
            students.append(students)
            holds.append(weakref.ref(students))
            return super().__call__(runs, machine, command=command)

    holds: list[weakref.ref[Students]] = []
    gc.disable()  # it must not depend on when the next collection falls
    try:
        sweep(plan, tmp_path, Fails("none-0", "embedding-0", "lfi-0"), together=3)
    finally:
        gc.enable()
    assert len(holds) == 5


def test_one_of_several_processes_writes(plan: list[PlannedRun], tmp_path: Path) -> None:
    loop = Loop()
    run_sweep(plan, tmp_path, RuntimeConfig(workers=3), train=loop, command="lfi sweep x", record=False)
    assert not (tmp_path / "sweep.json").exists()


def test_together_is_one_or_more(plan: list[PlannedRun], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="together must be 1 or more, got 0"):
        sweep(plan, tmp_path, Loop(), together=0)


def test_steps_are_counted_from_the_cache(tiny_targets: Path, tmp_path: Path) -> None:
    common = {"targets": str(tiny_targets), "student": "resnet18", "batch_size": 8}
    runs = [planned(tmp_path, "a", epochs=2, **common), planned(tmp_path, "b", epochs=1, **common | {"batch_size": 5})]
    assert check_runs(runs, Path("x.toml")) == [6, 4]  # 24 images


def test_what_cannot_start_is_told_before_anything_starts(tiny_targets: Path, tmp_path: Path) -> None:
    common = {"targets": str(tiny_targets)}
    runs = [
        planned(tmp_path, "a", student="resnt18", **common),
        planned(tmp_path, "b", **common),
        planned(tmp_path, "c", hold_out=["sketch"], **common),
        planned(tmp_path, "d", targets="nowhere"),
        planned(tmp_path, "e", taps=[99], **common),
        planned(tmp_path, "f", hold_out=["colour", "grey", "outline"], **common),
    ]
    with pytest.raises(ConfigError, match=r"x\.toml.*nothing was started") as raised:
        check_runs(runs, Path("x.toml"))
    lines = [line.strip() for line in str(raised.value).splitlines()[1:]]
    assert [line[:2] for line in lines] == ["a:", "c:", "d:", "e:", "f:"]
    for line, word in zip(lines, ("Did you mean 'resnet18'", "hold_out", "nowhere", "99", "no usable"), strict=True):
        assert word in line


def test_runs_of_other_tasks_are_not_fed_from_one_read(tmp_path: Path) -> None:
    plan = [planned(tmp_path, task, task=task) for task in ("auto", "multi-label", "none")]
    assert [len(group) for group in groups_of(plan, 3)] == [1, 1, 1]


def test_a_run_that_another_process_trains_is_left_to_it(plan: list[PlannedRun], tmp_path: Path) -> None:
    class Elsewhere(Loop):
        """Meets a lock."""

        def __call__(self, runs: Any, machine: RuntimeConfig, *, command: str = "") -> list[Mapping[str, Any]]:
            if any(folder.name == "lfi-0" for _, folder in runs):
                self.calls.append([folder.name for _, folder in runs])
                raise RunLockedError("lfi-0 is being trained by process 7 on there.")
            return super().__call__(runs, machine, command=command)

    errors, told = sweep(plan, tmp_path, Elsewhere(), together=3)
    assert [name for name, error in errors.items() if error] == ["lfi-0"]
    assert "lfi-0 is left to another process: lfi-0 is being trained by process 7 on there." in told


def test_a_run_that_another_process_has_finished_since_has_not_failed(plan: list[PlannedRun], tmp_path: Path) -> None:
    class Elsewhere(Loop):
        """As if the run that comes first were finished elsewhere while this process trains the next."""

        def __call__(self, runs: Any, machine: RuntimeConfig, *, command: str = "") -> list[Mapping[str, Any]]:
            if (name := runs[0][1].name) == plan[0].name:
                raise RunLockedError(f"{name} is being trained by process 7 on there.")
            plan[0].folder.mkdir(exist_ok=True)
            (plan[0].folder / "summary.json").write_text("{}")
            return super().__call__(runs, machine, command=command)

    errors, _ = sweep(plan, tmp_path, Elsewhere())
    assert set(errors.values()) == {None}
    states = {each["name"]: each["state"] for each in json.loads((tmp_path / "sweep.json").read_text())["runs"]}
    assert set(states.values()) == {"finished"}


def test_an_unreadable_summary_is_of_a_run_that_is_not_finished(plan: list[PlannedRun], tmp_path: Path) -> None:
    plan[0].folder.mkdir()
    (plan[0].folder / "summary.json").write_text("")
    assert plan[0] in groups_of(plan, 99)[0]

"""A sweep's file becomes runs: all of them, each once, under names that last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, OutputExistsError, UnknownNameError
from lfi_pipeline.core.options import flatten
from lfi_pipeline.training.sweep import PlannedRun, plan_sweep, read_sweep

Plan = Callable[[str], list[PlannedRun]]
GRID = """
[base]
targets = "shards"
[grid]
seed = [0, 1]
student = ["resnet18", "vit_tiny_patch16_224"]
objective = ["none", "lfi"]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The runs of a file with this content, in `tmp_path/runs`."""

    def planned(content: str) -> list[PlannedRun]:
        (tmp_path / "sweep.toml").write_text(content)
        return plan_sweep(read_sweep(tmp_path / "sweep.toml"), tmp_path / "runs")

    return planned


def begin(run: PlannedRun, **changes: Any) -> None:
    """Leave what a run leaves when it starts."""
    run.folder.mkdir(parents=True)
    settings = flatten(run.config) | changes
    (run.folder / "config.json").write_text(json.dumps({"settings": settings}))


def names(runs: list[PlannedRun]) -> list[str]:
    return [run.name for run in runs]


def test_every_combination_is_a_run(plan: Plan, tmp_path: Path) -> None:
    runs = plan(GRID)
    assert names(runs) == [
        f"{student}-{objective}-{seed}"
        for seed in (0, 1)
        for student in ("resnet18", "vit_tiny_patch16_224")
        for objective in ("none", "lfi")
    ]
    for run in runs:
        config = run.config
        assert run.name == f"{config.student.name}-{config.objective}-{config.data.seed}"
        assert config.data.targets == tmp_path.resolve() / "shards"
        assert run.folder.parent == tmp_path / "runs"


def test_names_hold_what_varies(plan: Plan) -> None:
    runs = plan(
        """
        [base]
        targets = "shards"
        epochs = 3
        [grid]
        objective = ["lfi"]
        learning-rate = [1e-3, 5e-4]
        weight = [{lfi = 0.3}, {lfi = "1:cosine"}]
        hold_out = [[], ["grey", "outline"]]
        """
    )
    assert names(runs)[0] == "lr=0.001-lfi=0.3-hold_out=none"
    assert names(runs)[-1] == "lr=0.0005-lfi=1-cosine-hold_out=grey+outline"
    assert len(set(names(runs))) == 8


def test_a_seed_alone_says_that_it_is_one(plan: Plan) -> None:
    assert names(plan("[base]\ntargets='x'\n[grid]\nseed=[3, 4]")) == ["seed=3", "seed=4"]
    assert names(plan("[base]\ntargets='x'")) == ["run"]


def test_conditions_apply_to_what_matches_and_in_order(plan: Plan) -> None:
    runs = plan(
        GRID
        + """
        [[where]]
        match = {objective = "none"}
        set = {learning-rate = 1e-3, epochs = 2}
        [[where]]
        match = {epochs = 2, student = ["resnet18", "resnet34"]}
        set = {batch_size = 8}
        """
    )
    for run in runs:
        none = run.config.objective == "none"
        assert run.config.optimizer.lr == (1e-3 if none else 5e-4)
        small = none and run.config.student.name == "resnet18"
        assert run.config.data.batch_size == (8 if small else 64)


def test_a_condition_can_match_a_default(plan: Plan) -> None:
    content = "[base]\ntargets='x'\n[[where]]\nmatch={objective='lfi'}\nset={weight={lfi=3}}"
    assert plan(content)[0].config.weight("lfi").value == 3


def test_combinations_that_come_out_the_same_are_one_run(plan: Plan) -> None:
    runs = plan(
        """
        [base]
        targets = "shards"
        [grid]
        objective = ["none", "lfi"]
        maps = ["teacher", "shuffled", "uniform"]
        [[where]]
        match = {objective = "none"}
        set = {maps = "teacher"}
        """
    )
    assert names(runs) == ["none-teacher", "lfi-teacher", "lfi-shuffled", "lfi-uniform"]


def test_two_runs_never_share_a_directory(plan: Plan) -> None:
    runs = plan(
        "[base]\ntargets='x'\n[grid]\nobjective=['none','lfi']\n"
        "[[where]]\nmatch={objective='none'}\nset={objective='lfi', epochs=3}"
    )
    assert names(runs) == ["lfi", "lfi-2"]
    assert [run.config.data.epochs for run in runs] == [3, 15]


def test_wrong_combinations_are_all_listed(plan: Plan) -> None:
    content = GRID + "maps = ['teacher', 'shuffled']\n"
    with pytest.raises(ConfigError, match="nothing was started") as raised:
        plan(content)
    lines = str(raised.value).splitlines()
    assert len(lines) == 1 + 4
    assert all("objective = 'none', maps = 'shuffled': maps 'shuffled' is a control" in line for line in lines[1:])
    assert "seed = 0, student = 'resnet18'" in lines[1]


def test_runs_keep_their_directories_when_the_file_changes(plan: Plan) -> None:
    first = plan(GRID)
    for run in first:
        begin(run)
    assert plan(GRID) == first
    more = plan(GRID + "epochs = [15, 30]\n")
    assert [run for run in more if run.config.data.epochs == 15] == first
    assert {run.name for run in more if run.config.data.epochs == 30} == {
        f"{run.name}".replace(f"-{run.config.data.seed}", f"-epochs=30-{run.config.data.seed}") for run in first
    }


def test_a_name_that_other_settings_have_is_not_taken(plan: Plan) -> None:
    content = "[base]\ntargets='x'\nepochs=3\n[grid]\nobjective=['none','lfi']\n"
    for run in plan(content):
        begin(run)
    changed = plan(content.replace("epochs=3", "epochs=4"))
    assert names(changed) == ["none-2", "lfi-2"]
    begin(changed[0])
    assert names(plan(content.replace("epochs=3", "epochs=4"))) == ["none-2", "lfi-2"]
    assert names(plan(content)) == ["none", "lfi"]


def test_moved_data_leave_runs_where_they_are(plan: Plan) -> None:
    runs = plan(GRID)
    for run in runs:
        begin(run, targets="/before/shards", data_root="/before/images")
    assert plan(GRID) == runs


def test_caches_of_one_name_are_not_taken_for_moved(plan: Plan) -> None:
    content = "[base]\nepochs=3\n[grid]\ntargets=['a/shards', 'b/shards']\n"
    runs = plan(content)
    assert names(runs) == ["targets=shards", "targets=shards-2"]
    begin(runs[0])
    assert plan(content) == runs
    begin(runs[1])
    assert plan(content) == runs


def test_a_directory_of_something_else_is_left_alone(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "runs/none").mkdir(parents=True)
    (tmp_path / "runs/none/thesis.txt").write_text("mine")
    (tmp_path / "runs/lfi/checkpoints").mkdir(parents=True)  # nothing in it yet
    (tmp_path / "runs/notes.txt").write_text("mine")
    assert names(plan("[base]\ntargets='x'\n[grid]\nobjective=['none','lfi']")) == ["none-2", "lfi"]


def test_where_runs_go(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text("out = 'runs/a'")
    assert read_sweep(path).out == tmp_path.resolve() / "runs/a"
    path.write_text("")
    assert read_sweep(path).out is None
    path.write_text("[base]\ntargets='x'")
    with pytest.raises(OutputExistsError, match="must be a directory"):
        plan_sweep(read_sweep(path), path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("gird = 1", UnknownNameError, r"sweep\.toml.*Did you mean 'grid'"),
        ("out = 3", ConfigError, "out must be a path"),
        ("base = 3", ConfigError, "base must be a table"),
        ("[grid]\nepochs = 3", ConfigError, r"\[grid\]: epochs must be a list of values to try, got 3"),
        ("[grid]\nepochs = []", ConfigError, "list of values"),
        ("[grid]\nepochs = [3, 'x']", ConfigError, r"\[grid\]: epochs must be a whole number, got 'x'"),
        ("[grid]\nepoch = [3]", UnknownNameError, r"\[grid\].*'epochs'"),
        ("[grid]\nbatch-size = [3]\nbatch_size = [4]", ConfigError, "once"),
        ("[base]\nworkers = 3", ConfigError, r"\[base\]: workers.*`workers`"),
        ("[base]\nbatch-size = 3\n[grid]\nbatch_size = [4]", ConfigError, "batch_size in both"),
        ("[where]\nmatch = {seed = 1}", ConfigError, r"\[\[where\]\]"),
        ("[[where]]\nmatch = {seed = 1}", ConfigError, "what to match and what to set"),
        ("[[where]]\nmatch = {sed = 1}\nset = {epochs = 3}", UnknownNameError, r"where 1.*'seed'"),
        ("[[where]]\nmatch = {seed = 1}\nset = {epochs = 'x'}", ConfigError, r"where 1\]: epochs must be"),
        ("[[where]]\nmatch = {epochs = '3'}\nset = {seed = 1}", ConfigError, r"where 1\]\]: epochs must be"),
        ("[[where]]\nif = {seed = 1}", UnknownNameError, "match, set"),
        ("[grid\n", ConfigError, "line 1"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, content: str, error: type[Exception], words: str) -> None:
    (tmp_path / "sweep.toml").write_text(content)
    with pytest.raises(error, match=words):
        read_sweep(tmp_path / "sweep.toml")


VARIANTS = """
[base]
targets = "shards"
lr = 1e-3
[[variant]]
name = "control"
set = {objective = "none"}
[[variant]]
name = "maps"
set = {objective = "lfi", lr = 3e-3, weight = {lfi = "100%"}}
[grid]
seed = [0, 1]
"""


def test_each_variant_is_run_with_every_combination(plan: Plan) -> None:
    runs = plan(VARIANTS)
    assert names(runs) == ["control-0", "maps-0", "control-1", "maps-1"]  # of every variant one seed first
    assert [(r.config.objective, r.config.optimizer.lr, r.config.data.seed) for r in runs] == [
        ("none", 1e-3, 0),
        ("lfi", 3e-3, 0),
        ("none", 1e-3, 1),
        ("lfi", 3e-3, 1),
    ]
    assert runs[1].config.weight("lfi").value == 1


def test_conditions_see_what_a_variant_sets(plan: Plan) -> None:
    runs = plan(VARIANTS + '[[where]]\nmatch = {objective = "lfi", seed = 1}\nset = {lr = 5e-3}\n')
    assert [run.config.optimizer.lr for run in runs] == [1e-3, 3e-3, 1e-3, 5e-3]


def test_each_trial_is_a_variant_of_its_own(plan: Plan) -> None:
    trials = 'trials = [{lr = 2e-3}, {lr = 4e-3, weight = {lfi = "25%"}}]\n'
    runs = plan(VARIANTS.replace(', lr = 3e-3, weight = {lfi = "100%"}}\n', "}\n" + trials))
    of_maps = ["maps-lr=0.002", "maps-lr=0.004-lfi=25%"]
    assert names(runs) == [f"{name}-{seed}" for seed in (0, 1) for name in ("control", *of_maps)]
    shown = [(r.config.optimizer.lr, str(r.config.weight("lfi"))) for r in runs[:3]]
    assert shown == [(1e-3, "50.0%"), (2e-3, "50.0%"), (4e-3, "25.00%")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('set = {objective = "none"}', 'set = {objective = "none", seed = 3}'),
            r"\[\[variant\]\] or in \[grid\], found seed",
        ),
        (('name = "maps"', 'name = "control"'), "name of its own, found control twice"),
        (('name = "maps"', 'name = "a b/c"'), "must have a name of letters"),
        (('name = "maps"\n', ""), "must have a name of letters"),
        (('set = {objective = "none"}', "sets = {}"), "Unknown entry"),
        (
            ("lr = 3e-3, weight", "lr = 3e-3}\ntrials = [{lr = 2e-3}]\n#"),
            "lr must stand in set or in trials, found in both",
        ),
        (
            ("lr = 3e-3, weight", "hflip = 0.1}\ntrials = {lr = 2e-3}\n#"),
            r"trials must be a list of settings to try, got \{",
        ),
        (("lr = 3e-3, weight", "hflip = 0.1}\ntrials = []\n#"), r"trials must be a list of settings to try, got \[\]"),
        (("lr = 3e-3, weight", "hflip = 0.1}\ntrials = [{lr = 1}, {lr = 1}]\n#"), "found maps-lr=1 twice"),
        (("lr = 3e-3, weight", "hflip = 0.1}\ntrials = [{rate = 1}]\n#"), r"Unknown setting in .*variant 2\]: 'rate'"),
        (('[[variant]]\nname = "control"', '[variant]\nname = "control"'), "line|list of tables"),
    ],
)
def test_variants_that_cannot_be_are_refused(plan: Plan, change: tuple[str, str], message: str) -> None:
    content = VARIANTS.replace(*change)
    assert content != VARIANTS
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        plan(content)

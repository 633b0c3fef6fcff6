"""lfi train: options, files and several students, with the library's loop stood in."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main

from lfi_cli.main import app_for
from lfi_cli.train import Train
from lfi_pipeline import training
from lfi_pipeline.core.options import build, declared, defaults, flatten
from lfi_pipeline.training.config import RuntimeConfig, TrainConfig, Weight, write_config

Lfi = Callable[..., Any]
Fails = Callable[..., str]
Calls = list[tuple[list[tuple[TrainConfig, Path]], RuntimeConfig, str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """What `training.train` was called with; it answers with a summary a run. The current directory is empty."""
    made: Calls = []

    def train(
        runs: Sequence[tuple[TrainConfig, Path]], machine: RuntimeConfig, *, command: str = ""
    ) -> list[Mapping[str, Any]]:
        made.append((list(runs), machine, command))
        parameters = {"backbone": 1234567, "head": 890, "queries": 0}
        summary = {"steps": 7, "step_ms": 12.3, "parameters": parameters, "map_seen": 0.5, "map_heldout": None}
        return [summary for _ in runs]

    monkeypatch.setattr(training, "train", train)
    monkeypatch.chdir(tmp_path)
    return made


def options() -> dict[str, Any]:
    group = typer.main.get_command(app_for(["train"]))
    assert isinstance(group, typer.core.TyperGroup)
    return {parameter.name or "": parameter for parameter in group.commands["train"].params}


def test_every_setting_and_all_of_the_machine_is_an_option_without_a_default() -> None:
    found = {name: option for name, option in options().items() if not getattr(option, "hidden", False)}
    own = {"config", "out", "dry_run", "as_json"}
    assert {name for name in found if "help" not in name} == set(declared(TrainConfig)) | set(
        declared(RuntimeConfig)
    ) | own
    assert {name for name in declared(Train) if found[name].default is not None} == set()


def test_help_is_grouped_and_shows_the_defaults_of_the_library(lfi: Lfi) -> None:
    text = " ".join(lfi("train", "--help").out.split())
    for panel in ("Data", "Student", "Queries", "Objective", "Optimiser", "Augmentation", "Machine"):
        assert f"╭─ {panel}" in text
    assert f"[default: {defaults(TrainConfig)['lr']}]" in text
    assert "[default: tensorboard]" in text
    assert "Example: lfi train" in text


def test_nothing_but_targets_gives_the_defaults(lfi: Lfi, calls: Calls) -> None:
    assert lfi("train", "--targets", "shards").code == 0
    [([(config, folder)], machine, command)] = calls
    assert config == build(TrainConfig, {"targets": str(Path("shards").resolve())})
    assert folder == Path("runs/vit_tiny_patch16_224-lfi-0")
    assert machine == RuntimeConfig()
    assert command.startswith("lfi")


def test_a_share_of_the_labels_reaches_its_setting(lfi: Lfi, calls: Calls) -> None:
    assert lfi("train", "--targets", "shards", "--label-share", "0.1").code == 0
    [([(config, _)], _, _)] = calls
    assert config.data.label_share == 0.1


def test_each_option_reaches_its_setting(lfi: Lfi, calls: Calls) -> None:
    words = """--targets shards --data-root images --hold-out grey --hold-out outline --val-split dev --epochs 3
        --batch-size 12 --seed 4 --student resnet18 --image-size 64 --patch-size 8 --student-arg depth=6
        --student-arg act=gelu --pretrained --taps 1,3 --state reset --query-scale 1/d --readout text
        --query-width 16 --query-heads 2 --objective lfi+embedding --weight lfi=0.3:cosine --weight embedding=2
        --maps uniform --words 4 --task multi-label --optimizer sgd --lr 0.1 --weight-decay 0.2
        --layer-decay 0.7
        --clip 2 --schedule linear --warmup-epochs 2 --ema 0.99 --accumulate 2 --precision bf16 --least-area 0.3
        --aspect 1.5 --flip 0.2 --mirror-maps --draft --randaugment 2 --randaugment-pool hue --magnitude 5
        --magnitude-spread 1 --mixup 0.2 --cutmix 0.9 --mix-probability 0.8
        --multi-label-loss asl --head linear --query-lr 0.5 --mix maps --mix-maps-prob 0.5 --map-share 0.3 --word-weight peaked"""
    machine = "--workers 2 --device cpu --track wandb --track trackio --checkpoint-minutes 1 --keep-every 3 --threads 2"
    machine += " --compile"
    assert lfi("train", *words.split(), *machine.split(), "--out", "run").code == 0
    [([(config, folder)], on, _)] = calls
    flat = flatten(config)
    same = [name for name, default in defaults(TrainConfig).items() if flat[name] == default]
    assert same == ["label_share"]  # which goes with no mixing; so that no other option is left out above
    assert flat["student_arg"] == {"depth": 6, "act": "gelu"}
    assert (flat["hold_out"], flat["taps"], flat["pretrained"]) == (["grey", "outline"], [1, 3], True)
    assert config.weights == {"lfi": Weight(0.3, "cosine"), "embedding": Weight(2.0)}
    assert on == RuntimeConfig(
        workers=2,
        device="cpu",
        threads=2,
        compile=True,
        track=("wandb", "trackio"),
        checkpoint_minutes=1,
        keep_every=3,
    )
    assert folder == Path("run")


def test_options_go_over_a_file(lfi: Lfi, calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/a.toml").write_text(
        'targets = "../shards"\nstudent = "resnet18"\nepochs = 3\npretrained = true\ntaps = [1]\n'
        "batch-size = 8\n[student-arg]\ndepth = 6\nact = 'gelu'\n[weight]\nlfi = 0.5\n"
    )
    words = ("--epochs", 5, "--no-pretrained", "--student-arg", "depth=3", "--taps", "auto", "--track", "none")
    assert lfi("train", "--config", "configs/a.toml", *words).code == 0
    [([(config, folder)], machine, _)] = calls
    wanted = {"targets": str(tmp_path.resolve() / "shards"), "student": "resnet18", "epochs": 5, "batch_size": 8}
    assert config == build(TrainConfig, wanted | {"student_arg": {"depth": 3, "act": "gelu"}, "weight": {"lfi": 0.5}})
    assert folder == Path("runs/resnet18-lfi-0")
    assert machine.track == ()


def test_a_saved_file_reruns_the_run(lfi: Lfi, calls: Calls, tmp_path: Path) -> None:
    config = build(
        TrainConfig, {"targets": "shards", "objective": "lfi+presence", "weight": {"lfi": "1.0:linear"}, "ema": 0.9}
    )
    write_config(tmp_path / "config.toml", flatten(config))
    (tmp_path / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "elsewhere")
        assert lfi("train", "--config", tmp_path / "config.toml", "--out", "again").code == 0
    [([(again, _)], _, _)] = calls
    assert flatten(again) == flatten(config) | {"targets": str(tmp_path.resolve() / "shards")}


def test_several_students_are_several_runs_of_one_stream(lfi: Lfi, calls: Calls) -> None:
    words = ("train", "--targets", "shards", "--student", "resnet18", "--student", "vit_tiny_patch16_224", "--seed", 2)
    ended = lfi(*words, "--out", "both", "--json")
    [(runs, _, _)] = calls
    assert [folder.as_posix() for _, folder in runs] == ["both/resnet18-lfi-2", "both/vit_tiny_patch16_224-lfi-2"]
    assert [config.student.name for config, _ in runs] == ["resnet18", "vit_tiny_patch16_224"]
    assert runs[0][0].data == runs[1][0].data
    assert [run["out"] for run in ended.json["runs"]] == [str(folder) for _, folder in runs]
    shown = lfi(*words).out
    assert shown.count("50.0 %") == 2


def test_one_run_is_told_as_facts(lfi: Lfi, calls: Calls) -> None:
    lines = lfi("train", "--targets", "shards", "--out", "there/run").out.splitlines()
    assert lines[0] == "run"
    assert any(line.startswith("steps") and line.endswith("7") for line in lines)
    assert any(line.startswith("step time") and line.endswith("12 ms (median)") for line in lines)
    assert any(line.endswith("1,234,567 backbone, 890 head") for line in lines)
    assert any(line.startswith("mAP ") and line.endswith("50.0 %") for line in lines)  # no domain is held out
    assert not any("domains" in line for line in lines)
    assert lines[-1].endswith("there/run")


def test_only_the_first_process_speaks(lfi: Lfi, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert lfi("train", "--targets", "shards", "--json").out == ""
    assert len(calls) == 1


def test_a_dry_run_prints_a_file_that_can_be_run(lfi: Lfi, calls: Calls, tmp_path: Path) -> None:
    words = ("train", "--targets", "shards", "--weight", "lfi=0.3:cosine", "--dry-run")
    (tmp_path / "dry.toml").write_text(lfi(*words).out)
    assert tomllib.loads((tmp_path / "dry.toml").read_text())["targets"] == str(tmp_path.resolve() / "shards")
    assert calls == []
    assert lfi("train", "--config", "dry.toml").code == 0
    [([(config, _)], _, _)] = calls
    assert config.weights == {"lfi": Weight(0.3, "cosine")}
    assert lfi(*words, "--json").json["runs"][0]["settings"] == json.loads(json.dumps(flatten(config)))


@pytest.mark.parametrize(
    ("kind", "words", "says"),
    [
        ("ConfigError", (), "lfi extract-teacher"),
        ("ConfigError", ("--targets", "x", "--student", "a", "--student", "a"), "once"),
        ("ConfigError", ("--targets", "x", "--weight", "0.3"), "TERM=VALUE"),
        ("ConfigError", ("--targets", "x", "--weight", "lfi=much"), "'much'"),
        ("ConfigError", ("--targets", "x", "--weight", "logits=1"), "'logits'"),
        ("UnknownNameError", ("--targets", "x", "--weight", "lfi=1:step"), "constant, cosine, linear"),
        ("ConfigError", ("--targets", "x", "--student-arg", "depth"), "KEY=VALUE"),
        ("ConfigError", ("--targets", "x", "--student-arg", "act=null"), "plain values"),
        ("ConfigError", ("--targets", "x", "--taps", "1,x"), "a list of whole numbers, got [1, 'x']"),
        ("ConfigError", ("--targets", "x", "--lr", "nan"), "finite"),
        ("ConfigError", ("--targets", "x", "--workers", "-1"), "workers"),
        ("ConfigError", ("--config", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_options_that_cannot_work(fails: Fails, calls: Calls, kind: str, words: tuple[str, ...], says: str) -> None:
    assert says in fails(kind, "train", *words)
    assert calls == []

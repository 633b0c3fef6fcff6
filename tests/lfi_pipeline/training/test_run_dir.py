"""A run's directory: settings come back as they were, and nothing of somebody else's is ever touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lfi_pipeline.data.replay import Augmentation
from lfi_pipeline.errors import OutputExistsError, RunError
from lfi_pipeline.students import QueryConfig, StudentConfig
from lfi_pipeline.training import TrainConfig
from lfi_pipeline.training.run_dir import (
    CONFIG,
    LAST,
    METRICS,
    SUMMARY,
    MetricsLog,
    config_from,
    load_checkpoint,
    prepare,
    read_json,
    save_checkpoint,
    settings_of,
    write_json,
)

PLAIN = TrainConfig(targets=Path("shards"))
RICH = TrainConfig(
    targets=Path("shards"),
    data_root=Path("data/scenes"),
    student=StudentConfig(name="resnet18", image_size=64, kwargs={"depth": 6, "act_layer": "gelu"}, taps=(1, 3)),
    queries=QueryConfig(width=32, heads=2, state="reset"),
    objective="lfi",
    maps="shuffled",
    hold_out=("grey", "outline"),
    augmentation=Augmentation(least_area=0.3, aspect=2.0, flip=0.0),
    learning_rate=3e-4,
    seed=5,
)


def begin(run: Path, config: TrainConfig) -> None:
    """Leave what a started run leaves."""
    assert not prepare(run, config)
    write_json(run / CONFIG, {"settings": settings_of(config)})


@pytest.mark.parametrize("config", [PLAIN, RICH])
def test_settings_survive_json(config: TrainConfig) -> None:
    plain = json.loads(json.dumps(settings_of(config)))
    assert config_from(plain, Path("config.json")) == config


@pytest.mark.parametrize(
    "break_it",
    [
        lambda s: s.pop("student"),
        lambda s: s.update(no_such_setting=1),
        lambda s: s.update(epochs=0),
        lambda s: s.update(queries={"width": 1, "heads": 2, "state": "persistent"}),
        lambda s: s.clear(),
    ],
)
def test_settings_that_do_not_fit_are_a_run_error_naming_the_file(break_it: object) -> None:
    settings = settings_of(RICH)
    break_it(settings)  # type: ignore[operator]
    with pytest.raises(RunError, match=r"there/config\.json"):
        config_from(settings, Path("there/config.json"))


def test_a_fresh_directory_is_made(tmp_path: Path) -> None:
    assert prepare(tmp_path / "deep" / "run", PLAIN) is False
    assert (tmp_path / "deep" / "run" / "checkpoints").is_dir()


def test_a_finished_run_of_the_same_settings_is_kept(tmp_path: Path) -> None:
    begin(tmp_path / "run", RICH)
    write_json(tmp_path / "run" / SUMMARY, {"steps": 1})
    (tmp_path / "run" / METRICS).write_text("kept")
    assert prepare(tmp_path / "run", RICH) is True
    assert (tmp_path / "run" / METRICS).read_text() == "kept"


def test_an_unfinished_run_starts_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begin(run, RICH)
    MetricsLog(run).write(event="train", step=1)
    save_checkpoint(run, nn.Linear(2, 2), step=1)
    assert prepare(run, RICH) is False
    assert not (run / METRICS).exists()
    assert list((run / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_and_named(tmp_path: Path, finished: bool) -> None:
    run = tmp_path / "run"
    begin(run, RICH)
    (run / METRICS).write_text("kept")
    if finished:
        write_json(run / SUMMARY, {"steps": 1})
    with pytest.raises(OutputExistsError) as caught:
        prepare(run, replace(RICH, seed=6, learning_rate=1e-2))
    assert "seed: 5 there, 6 asked" in str(caught.value)
    assert "learning_rate: 0.0003 there, 0.01 asked" in str(caught.value)
    assert "epochs" not in str(caught.value)
    assert (run / METRICS).read_text() == "kept"


def test_a_foreign_directory_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="other files"):
        prepare(tmp_path, PLAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("settings", [None, [1], "text"])
def test_a_foreign_config_is_refused(tmp_path: Path, settings: object) -> None:
    write_json(tmp_path / CONFIG, {"settings": settings})
    with pytest.raises(OutputExistsError, match="not of a run"):
        prepare(tmp_path, PLAIN)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputExistsError, match="found a file"):
        prepare(tmp_path / "run", PLAIN)


def test_a_place_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        prepare(tmp_path / "file" / "run", PLAIN)


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):  # keys of mixed types cannot be written: the old file stands
        write_json(path, {("not", "a key"): 1})  # type: ignore[dict-item]
    assert read_json(path) == {"a": 1}
    write_json(path, {"a": Path("b")})
    assert read_json(path) == {"a": "b"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(("content", "words"), [("[1]", "list"), ("{", "JSON object"), (None, "has no x.json")])
def test_json_that_is_not_an_object_is_a_run_error(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(RunError, match=words):
        read_json(tmp_path / "x.json")


def test_metrics_are_one_object_a_line_on_disk_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(step=1, loss=0.5)
    assert (tmp_path / METRICS).read_text() == '{"step": 1, "loss": 0.5}\n'
    log.write(step=2, loss=None)
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1, 2]


def test_a_resume_drops_later_and_torn_lines(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=3)  # nothing there yet
    for step in (1, 3, 4):
        log.write(step=step)
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"step": 2')  # torn by a kill
    MetricsLog(tmp_path, resume_step=3).write(step=4, again=1)
    assert (tmp_path / METRICS).read_text() == '{"step": 1}\n{"step": 3}\n{"step": 4, "again": 1}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == [METRICS]


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    prepare(tmp_path / "run", PLAIN)
    saved, loaded = nn.Linear(3, 2), nn.Linear(3, 2)
    save_checkpoint(tmp_path / "run", saved, step=4)
    load_checkpoint(tmp_path / "run", loaded)
    assert torch.equal(saved.weight, loaded.weight)
    assert [entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()] == [Path(LAST).name]


def test_a_missing_checkpoint_says_to_train_first(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Train it first"):
        load_checkpoint(tmp_path, nn.Linear(1, 1))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "other shape"])
def test_a_checkpoint_that_does_not_fit_is_a_run_error(tmp_path: Path, damage: str) -> None:
    prepare(tmp_path / "run", PLAIN)
    save_checkpoint(tmp_path / "run", nn.Linear(3, 5 if damage == "other shape" else 2), step=1)
    path = tmp_path / "run" / LAST
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-4], "garbage": b"\xff" * 64, "empty": b""}.get(damage, content))
    with pytest.raises(RunError, match=r"last\.safetensors does not fit"):
        load_checkpoint(tmp_path / "run", nn.Linear(3, 2))

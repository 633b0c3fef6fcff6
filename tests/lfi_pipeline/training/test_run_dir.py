"""A run's directory: settings come back as they were, and nothing of somebody else's is ever touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lfi_pipeline.core.errors import ConfigError, OutputExistsError, RunError
from lfi_pipeline.core.options import build, flatten
from lfi_pipeline.evaluation.protocols import read_results
from lfi_pipeline.students.config import QueryConfig
from lfi_pipeline.training import TrainConfig
from lfi_pipeline.training.config import RUN_FILE
from lfi_pipeline.training.run_dir import (
    CONFIG,
    METRICS,
    SUMMARY,
    MetricsLog,
    config_fields,
    make_place,
    read_json,
    read_metrics,
    read_summary,
    recorded_config,
    require_place,
    summary_fields,
    write_json,
)

PLAIN = build(TrainConfig, {"targets": "shards"})
RICH = build(
    TrainConfig,
    {
        "targets": "shards",
        "data_root": "data/scenes",
        "student": "resnet18",
        "image_size": 64,
        "student_arg": {"depth": 6, "act_layer": "gelu"},
        "taps": [1, 3],
        "query_width": 32,
        "query_heads": 2,
        "state": "reset",
        "objective": "lfi+embedding",
        "weight": {"lfi": "0.3:cosine"},
        "maps": "shuffled",
        "hold_out": ["grey", "outline"],
        "scale": [0.3, 1.0],
        "hflip": 0.0,
        "lr": 3e-4,
        "seed": 5,
    },
)
FINGERPRINT = "0123abcd"


def begin(run: Path, config: TrainConfig) -> None:
    """Leave what a started run leaves."""
    require_place(run, config, FINGERPRINT)
    make_place(run)
    write_json(run / CONFIG, {"settings": flatten(config), "targets_fingerprint": FINGERPRINT})


@pytest.mark.parametrize("config", [PLAIN, RICH])
def test_settings_come_back(config: TrainConfig, tmp_path: Path) -> None:
    begin(tmp_path / "run", config)
    assert recorded_config(tmp_path / "run") == config


@pytest.mark.parametrize(
    "break_it",
    [
        lambda s: s.pop("targets"),
        lambda s: s.update(no_such_setting=1),
        lambda s: s.update(epochs=0),
        lambda s: s.update(query_width="wide"),
        lambda s: s.clear(),
    ],
)
def test_settings_that_do_not_fit_are_a_run_error_naming_the_file(tmp_path: Path, break_it: object) -> None:
    settings = flatten(RICH)
    break_it(settings)  # type: ignore[operator]
    write_json(tmp_path / CONFIG, {"settings": settings})
    with pytest.raises(RunError, match=r"config\.json: the settings of this run cannot be read"):
        recorded_config(tmp_path)


@pytest.mark.parametrize("settings", [None, [1], "text"])
def test_settings_that_are_none_are_a_run_error(tmp_path: Path, settings: object) -> None:
    write_json(tmp_path / CONFIG, {"settings": settings})
    with pytest.raises(RunError, match="missing"):
        recorded_config(tmp_path)


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    require_place(tmp_path / "deep" / "run", PLAIN, FINGERPRINT)
    assert not list(tmp_path.iterdir())
    make_place(tmp_path / "deep" / "run")
    assert (tmp_path / "deep" / "run" / "checkpoints").is_dir()
    require_place(tmp_path / "deep" / "run", PLAIN, FINGERPRINT)  # killed before it wrote its settings


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_the_same_settings_is_kept(tmp_path: Path, finished: bool) -> None:
    begin(tmp_path / "run", RICH)
    if finished:
        write_json(tmp_path / "run" / SUMMARY, {"steps": 1})
    (tmp_path / "run" / METRICS).write_text("kept")
    begin(tmp_path / "run", RICH)
    assert (tmp_path / "run" / METRICS).read_text() == "kept"


def test_a_run_of_an_earlier_release_has_the_scale_of_that_time(tmp_path: Path) -> None:
    run, usual = tmp_path / "run", replace(PLAIN, queries=QueryConfig(scale="1/sqrt(d)"))
    begin(run, PLAIN)
    record = json.loads((run / CONFIG).read_text())
    del record["settings"]["query_scale"]
    write_json(run / CONFIG, record)
    assert recorded_config(run) == usual
    require_place(run, usual, FINGERPRINT)  # goes on where the scale is named
    with pytest.raises(OutputExistsError, match=r"query_scale: '1/sqrt\(d\)' there, 'auto' asked"):
        require_place(run, PLAIN, FINGERPRINT)


def test_a_run_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    """It names settings that have gone, and lacks those that came since and had no other value."""
    run = tmp_path / "run"
    begin(run, RICH)
    record = json.loads((run / CONFIG).read_text())
    for name in ("label_share", "map_share", "mix", "word_weight"):
        del record["settings"][name]
    write_json(run / CONFIG, record | {"settings": record["settings"] | {"queries": "text", "slots": 16}})
    require_place(run, recorded_config(run), FINGERPRINT)
    require_place(run, RICH, FINGERPRINT)
    with pytest.raises(OutputExistsError, match=r"other settings \(lr: 0.0003 there, 0.1 asked\)"):
        require_place(run, replace(RICH, optimizer=replace(RICH.optimizer, lr=0.1)), FINGERPRINT)
    write_json(run / CONFIG, record | {"settings": record["settings"] | {"queries": "learned"}})
    with pytest.raises(RunError, match="learned slots"):
        require_place(run, RICH, FINGERPRINT)


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_and_named(tmp_path: Path, finished: bool) -> None:
    run = tmp_path / "run"
    begin(run, RICH)
    (run / METRICS).write_text("kept")
    if finished:
        write_json(run / SUMMARY, {"steps": 1})
    other = build(TrainConfig, flatten(RICH) | {"seed": 6, "lr": 1e-2, "weight": {"lfi": 0.3}})
    with pytest.raises(OutputExistsError) as caught:
        require_place(run, other, FINGERPRINT)
    assert "seed: 5 there, 6 asked" in str(caught.value)
    assert "lr: 0.0003 there, 0.01 asked" in str(caught.value)
    assert "weight: {'lfi': '0.3:cosine'} there, {'lfi': 0.3} asked" in str(caught.value)
    assert "epochs" not in str(caught.value)
    assert (run / METRICS).read_text() == "kept"


def test_a_cache_may_move_and_may_not_change(tmp_path: Path) -> None:
    begin(tmp_path / "run", RICH)
    moved = build(TrainConfig, flatten(RICH) | {"targets": "elsewhere", "data_root": None})
    require_place(tmp_path / "run", moved, FINGERPRINT)
    with pytest.raises(OutputExistsError, match=r"\(content of the cache: '0123abcd' there, 'ffff' asked\)"):
        require_place(tmp_path / "run", RICH, "ffff")


def test_a_foreign_directory_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="other files"):
        require_place(tmp_path, PLAIN, FINGERPRINT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("settings", [None, [1], "text"])
def test_a_foreign_config_is_refused(tmp_path: Path, settings: object) -> None:
    write_json(tmp_path / CONFIG, {"settings": settings})
    with pytest.raises(OutputExistsError, match="not of a run"):
        require_place(tmp_path, PLAIN, FINGERPRINT)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputExistsError, match="found a file"):
        require_place(tmp_path / "run", PLAIN, FINGERPRINT)


def test_a_place_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        make_place(tmp_path / "file" / "run")


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):  # keys of mixed types cannot be written: the old file stands
        write_json(path, {("not", "a key"): 1})  # type: ignore[dict-item]
    assert read_json(path) == {"a": 1}
    write_json(path, {"a": Path("b")})
    assert read_json(path) == {"a": "b"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(("content", "words"), [("[1]", "list"), ("{", "must be JSON"), (None, "has no x.json")])
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


def test_a_score_that_a_killed_process_could_not_keep_is_not_told_twice(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (1, 2):
        log.write(event="train", step=step)
        log.write(event="val", step=step)
    MetricsLog(tmp_path, resume_step=2)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    MetricsLog(tmp_path, resume_step=2, owes_epoch=True)
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [{"event": event, "step": step} for event, step in (("train", 1), ("val", 1), ("train", 2))]


def test_a_resume_drops_later_and_torn_lines(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=3)  # nothing there yet
    for step in (1, 3, 4):
        log.write(step=step)
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"step": 2')  # torn by a kill
    MetricsLog(tmp_path, resume_step=3).write(step=4, again=1)
    assert (tmp_path / METRICS).read_text() == '{"step": 1}\n{"step": 3}\n{"step": 4, "again": 1}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == [METRICS]


HOSTILE = {"deep": "[" * 100_000, "closed": "[" * 100_000 + "]" * 100_000, "digits": '{"a": ' + "9" * 5000 + "}"}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_no_json_or_toml_of_a_run_ends_in_a_traceback(tmp_path: Path, content: str) -> None:
    begin(tmp_path / "run", PLAIN)
    for name in (CONFIG, SUMMARY, "gallery.json", "evaluation/detection-x.json", "sweep.json"):
        path = tmp_path / "run" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        with pytest.raises(RunError):
            read_json(path)
    for read in (recorded_config, config_fields, summary_fields):
        with pytest.raises(RunError):
            read(tmp_path / "run")
    assert read_summary(tmp_path / "run") is None
    with pytest.raises(RunError):
        read_results(tmp_path / "run")
    (tmp_path / "run" / METRICS).write_text('{"step": 1}\n' + content + "\n")
    with pytest.raises(RunError):
        read_metrics(tmp_path / "run")
    MetricsLog(tmp_path / "run", resume_step=5)
    assert (tmp_path / "run" / METRICS).read_text() == '{"step": 1}\n'
    value = content.removeprefix('{"a": ').removesuffix("}")
    (tmp_path / "config.toml").write_text(f"a = {value}")
    with pytest.raises(ConfigError):
        RUN_FILE.read(tmp_path / "config.toml")

"""Loading: what is optional may be missing, what is wrong is named with its file and field."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.evaluation.protocols import latest_results, write_result
from lfi_pipeline.report.runs import load_run

CLASSIFICATION, GROUNDING = "evaluation/classification-*.json", "evaluation/grounding-*.json"


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def test_a_whole_run(make_run: Any) -> None:
    run = load_run(make_run("a", gallery=2))
    assert run.config.objective == "lfi"
    assert run.config.teacher == "coca_ViT-B-32 laion2b_s13b_b90k"
    assert run.scores is not None
    assert run.map_seen == run.scores.map_seen
    assert run.pointing == run.scores.taps[-1].pointing
    assert run.step_ms == 71.2
    sample = run.gallery[0]
    assert sample.student is not None
    assert sample.student.shape == (3, 3, 14, 14)
    assert sample.student.dtype == np.float32
    assert sample.image.dtype == np.uint8
    np.testing.assert_allclose(sample.teacher.sum(axis=(1, 2)), 1, atol=2e-3)


def test_a_stopped_run_without_evaluation(make_run: Any) -> None:
    run = load_run(make_run("a", "none", scores=False, summary=False))
    assert run.summary is None
    assert run.scores is None
    assert run.gallery == ()
    assert run.map_seen == run.validation[-1].map_seen
    assert run.step_ms == 61.0


@pytest.mark.parametrize("missing", [CLASSIFICATION, GROUNDING])
def test_a_run_evaluated_by_one_protocol(make_run: Any, missing: str) -> None:
    path = make_run("a")
    for file in path.glob(missing):
        file.unlink()
    run = load_run(path)
    assert run.scores is not None
    assert (run.classified is None) == (missing == CLASSIFICATION)
    assert (run.pointing is None) == (missing == GROUNDING)
    assert run.map_seen == run.validation[-1].map_seen  # with or without the evaluation


@pytest.mark.parametrize("protocol", ["classification", "grounding"])
def test_a_result_of_another_split_is_no_score(make_run: Any, protocol: str) -> None:
    path = make_run("a", settings={"val_split": "val"})
    run = load_run(path)
    result = latest_results(path)[protocol]
    write_result(path, replace(result, settings={**result.settings, "split": "train"}, scores={}, details={"taps": []}))
    assert load_run(path).scores == run.scores
    assert run.pointing is not None


def test_a_run_without_targets(make_run: Any) -> None:
    path = make_run("a", "none")
    edit(path / "config.json", targets=None, targets_fingerprint=None, teacher=None, kind=..., lambda_int=None)
    config = load_run(path).config
    assert (config.targets, config.fingerprint, config.teacher, config.kind) == ("", "", "", "")
    assert config.lambda_int is None


def test_the_steps_that_a_resumed_run_repeats_count_once(make_run: Any) -> None:
    path = make_run("a", "none")
    log = path / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:60] + lines[40:]))
    steps = [point.step for point in load_run(path).train]
    assert steps == sorted(set(steps))
    evaluated = [point.step for point in load_run(path).validation]
    assert evaluated == sorted(set(evaluated))
    assert len(steps) + len(evaluated) == len(lines)


def test_an_unfinished_last_line_is_skipped(make_run: Any) -> None:
    path = make_run("a", "none")
    whole = load_run(path)
    with (path / "metrics.jsonl").open("a") as log:
        log.write('{"event": "train", "st')
    assert load_run(path).train == whole.train


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_directory_that_is_no_run(make_run: Any, name: str) -> None:
    path = make_run("a")
    (path / name).unlink()
    with pytest.raises(RunError, match=re.escape(f"has no {name}")):
        load_run(path)


@pytest.mark.parametrize(
    ("file", "changes", "field"),
    [
        ("config.json", {"seed": "zero"}, "seed"),
        ("config.json", {"objective": ...}, "objective"),
        ("config.json", {"hold_out": "painted"}, "hold_out"),
        ("config.json", {"dataset": {"name": "x", "train_samples": -1}}, "dataset.train_samples"),
        ("summary.json", {"parameters": {"backbone": 1.5}}, "parameters.backbone"),
        (CLASSIFICATION, {"scores": {"map_seen": 55.7}}, "scores.map_seen"),
        (CLASSIFICATION, {"details": {"map_per_domain": {"flat": "none"}}}, "details.map_per_domain.flat"),
        (GROUNDING, {"details": {"taps": [{"index": 1}]}}, "details.taps[0].depth"),
        ("gallery.json", {"samples": [{"words": []}]}, "samples[0].words"),
        ("gallery.json", {"samples": None}, "samples"),
    ],
)
def test_a_wrong_field_is_named(make_run: Any, file: str, changes: dict[str, Any], field: str) -> None:
    path = make_run("a", gallery=1)
    (place,) = path.glob(file)
    edit(place, **changes)
    with pytest.raises(RunError, match=rf"(?s){re.escape(place.name)}.*{re.escape(field)}"):
        load_run(path)


def test_a_wrong_metric_is_named_with_its_line(make_run: Any) -> None:
    path = make_run("a", "none")
    with (path / "metrics.jsonl").open("a") as log:
        log.write('{"event": "val", "step": 2000, "map_seen": 2}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line \d+: field 'map_seen'"):
        load_run(path)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", CLASSIFICATION, GROUNDING, "gallery.json"])
def test_what_is_not_json_is_named(make_run: Any, name: str) -> None:
    path = make_run("a", gallery=1)
    (place,) = path.glob(name)
    place.write_text("{nonsense\n")
    with pytest.raises(RunError, match=re.escape(place.name)):
        load_run(path)


def test_tensors_of_another_shape_are_named(make_run: Any) -> None:
    path = make_run("a", gallery=1)
    tensors = load_file(path / "gallery.safetensors")
    save_file(tensors | {"teacher_0": np.zeros((2, 4, 4), np.float16)}, path / "gallery.safetensors")
    with pytest.raises(RunError, match=r"gallery\.safetensors: tensor 'teacher_0'"):
        load_run(path)
    save_file(tensors | {"image_0": np.zeros((4, 4, 3), np.float16)}, path / "gallery.safetensors")
    with pytest.raises(RunError, match=r"tensor 'image_0' must be uint8"):
        load_run(path)
    (path / "gallery.safetensors").write_bytes(b"short")
    with pytest.raises(RunError, match="readable safetensors"):
        load_run(path)


def test_a_run_without_a_task_is_read(make_run: Any) -> None:
    run = make_run("bare", scores=False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k != "task_loss"} for line in lines if line["event"] == "train"]
    time = {"event": "time", "step": 62, "epoch": 1, "waiting_s": 0.1}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*kept, time]))
    read = load_run(run)
    assert read.train[0].task_loss is None
    assert read.train[0].interaction_loss == kept[0]["lfi_loss"]
    assert read.validation == ()
    assert read.map_seen is None

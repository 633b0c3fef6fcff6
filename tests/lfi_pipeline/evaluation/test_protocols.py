"""Scoring finished runs: which protocols, what is kept in the runs, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, RunError, TargetsError, UnknownNameError
from lfi_pipeline.core.options import declared
from lfi_pipeline.core.parse import unseal_folder
from lfi_pipeline.data import Dataset
from lfi_pipeline.evaluation import EvaluationConfig, evaluate_runs
from lfi_pipeline.evaluation.config import (
    PROTOCOL_CONFIGS,
    ClassificationConfig,
    DetectionConfig,
    GroundingConfig,
    evaluation_configs,
)
from lfi_pipeline.evaluation.metrics import HEAD_SCORES, MEASURES, PROTOCOLS
from lfi_pipeline.evaluation.protocols import default_protocols, latest_results, load_protocol, read_results

CPU = EvaluationConfig(device="cpu")
CLASSES = {"classification": ClassificationConfig(probes=False)}


def test_every_run_is_scored_by_every_protocol_and_keeps_the_results(
    run_of: dict[str, Path], tiny_val_targets: Path
) -> None:
    configs = {**CLASSES, "grounding": GroundingConfig(targets=tiny_val_targets, gallery=0)}
    results = evaluate_runs([run_of["none"], run_of["lfi"], run_of["none"]], configs, CPU)
    assert list(results) == [run_of["none"], run_of["lfi"]]
    for run, found in results.items():
        assert list(found) == ["classification", "grounding"]
        for protocol, result in found.items():
            assert latest_results(run).get(protocol) == result
    assert results[run_of["none"]]["classification"].scores != results[run_of["lfi"]]["classification"].scores


def test_an_evaluation_is_the_same_twice_and_kept_once(run_of: dict[str, Path], tiny_val_targets: Path) -> None:
    run = run_of["lfi"]
    configs = {**CLASSES, "grounding": GroundingConfig(targets=tiny_val_targets)}
    first, second = (evaluate_runs([run], configs, CPU)[run] for _ in range(2))
    for protocol, result in second.items():
        assert replace(first[protocol], seconds=0.0) == replace(result, seconds=0.0)
    assert len(read_results(run)) == 2


def test_what_is_not_a_run_is_refused(run_of: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must be a run directory"):
        evaluate_runs([run_of["lfi"], tmp_path / "nowhere"], CLASSES, CPU)
    assert read_results(run_of["lfi"]) == []  # nothing is scored before all are known to be runs
    shutil.rmtree(run_of["lfi"] / "checkpoints")
    with pytest.raises(RunError, match="must be a checkpoint, found nothing"):
        evaluate_runs([run_of["lfi"]], CLASSES, CPU)


def test_a_run_whose_cache_is_gone_says_so(run_of: dict[str, Path], tmp_path: Path) -> None:
    path = run_of["lfi"] / "config.json"
    record = json.loads(path.read_text())
    record["settings"]["targets"] = str(tmp_path / "gone")
    unseal_folder(path.parent)  # changed by hand
    path.write_text(json.dumps(record))
    with pytest.raises(TargetsError, match="gone"):
        evaluate_runs([run_of["lfi"]], CLASSES, CPU)


def test_nothing_to_do_and_unknown_protocols_are_refused(run_of: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="0 runs and 1 protocols"):
        evaluate_runs([], CLASSES, CPU)
    with pytest.raises(ConfigError, match="1 runs and 0 protocols"):
        evaluate_runs([run_of["lfi"]], {}, CPU)
    with pytest.raises(UnknownNameError, match="Did you mean 'grounding'"):
        evaluate_runs([run_of["lfi"]], {"groundin": None}, CPU)
    with pytest.raises(ConfigError, match="workers must be 0 or more, got -1"):
        EvaluationConfig(workers=-1)


def test_grounding_is_scored_by_default_where_the_targets_have_masks(
    tiny_val_targets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_protocols(None) == ("classification",)
    assert default_protocols(tiny_val_targets) == ("classification", "grounding")
    from lfi_pipeline.evaluation import protocols as run

    read = run.read_dataset
    monkeypatch.setattr(run, "read_dataset", lambda *names: replace(read(*names), instances={}))
    assert default_protocols(tiny_val_targets) == ("classification",)


@pytest.mark.parametrize("why", ["one class an image", "other names"])
def test_masks_that_no_word_points_at_are_left_out_by_default(
    tiny_val_targets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    from lfi_pipeline.evaluation import protocols as run

    read = run.read_dataset

    def changed(*names: Any) -> Dataset:
        dataset = read(*names)
        if why == "other names":
            return replace(dataset, classes=tuple(f"thing {name}" for name in dataset.classes))
        return replace(dataset, samples=tuple(replace(each, labels=each.labels[:1]) for each in dataset.samples))

    monkeypatch.setattr(run, "read_dataset", changed)
    assert default_protocols(tiny_val_targets) == ("classification",)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Grounding is not scored. No word of ")


def test_a_config_is_made_of_the_options_that_the_protocol_has(tiny_val_targets: Path) -> None:
    options = {"targets": tiny_val_targets, "iterations": 3}
    common, configs = evaluation_configs(("grounding", "detection"), options)
    assert common == EvaluationConfig()
    assert configs == {
        "grounding": GroundingConfig(targets=tiny_val_targets),
        "detection": DetectionConfig(iterations=3),
    }
    with pytest.raises(ConfigError, match="grounding needs `targets`"):
        evaluation_configs(("grounding",), {})
    with pytest.raises(ConfigError, match="iterations is an option of protocol detection"):
        evaluation_configs(("grounding",), options)
    with pytest.raises(UnknownNameError, match="Did you mean 'gallery'"):
        evaluation_configs(("grounding",), {"targets": tiny_val_targets, "galery": 3})


def test_every_protocol_can_be_loaded_and_shares_no_default_with_another() -> None:
    assert set(PROTOCOL_CONFIGS) <= set(PROTOCOLS)
    owners: dict[str, object] = {}
    for name, kind in PROTOCOL_CONFIGS.items():
        assert callable(load_protocol(name))
        for option, each in declared(kind).items():
            default = None if each.required else each.default  # what one protocol needs may be left out for another
            assert owners.setdefault(option, default) == default, option  # one option of the command line
    assert owners["gallery"] == 12


def test_a_head_is_scored_by_the_same_names_in_training_and_evaluation() -> None:
    assert {m.name: m.heading for m in MEASURES["classification"]}.items() >= HEAD_SCORES.items()

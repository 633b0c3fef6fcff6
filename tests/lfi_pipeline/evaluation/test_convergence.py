"""Steps to a reference's final score: on curves whose crossing can be computed by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, RunError, UnknownNameError
from lfi_pipeline.evaluation import EvaluationConfig, evaluate_runs
from lfi_pipeline.evaluation.config import ConvergenceConfig
from lfi_pipeline.evaluation.convergence import convergence
from lfi_pipeline.evaluation.protocols import ProtocolResult, read_results


def written(
    root: Path,
    name: str,
    curve: Sequence[float | None],
    *,
    seed: int = 0,
    step_ms: float = 100.0,
    finished: bool = True,
    score: str = "map_seen",
    tail: str = "",
    **record: Any,
) -> Path:
    """A run that was validated every 100 steps."""
    run = root / name
    run.mkdir()
    content = {
        "name": name,
        "seed": seed,
        "task": "multi-label",
        "dataset": {"name": "scenes", "split": "train", "train_samples": 8, "val_samples": 4},
        "seen_domains": ["colour"],
        "settings": {"val_split": "val"},
    }
    (run / "config.json").write_text(json.dumps(content | record))
    events: list[dict[str, Any]] = []
    for number, value in enumerate(curve, start=1):
        events.append({"event": "train", "step": 100 * number, "loss": 1.0})
        events.append({"event": "val", "step": 100 * number, "map_heldout": None, score: value})
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + tail)
    if finished:
        (run / "summary.json").write_text(json.dumps({"steps": 100 * len(curve), "step_ms": step_ms}))
    return run


def scored(run: Path, *references: Path, score: str | None = None, smooth: int = 1) -> ProtocolResult:
    return convergence(run, EvaluationConfig(), ConvergenceConfig(references=references, score=score, smooth=smooth))


def test_steps_and_seconds_to_the_references_final_score(tmp_path: Path) -> None:
    run = written(tmp_path, "lfi", [0.1, 0.3, 0.5, 0.4], step_ms=200)
    reference = written(tmp_path, "none", [0.1, 0.2, 0.45, 0.3, 0.4, 0.4], step_ms=100)
    found = scored(run, reference)
    assert found.scores == pytest.approx(
        {"step_ratio": 250 / 600, "steps": 250, "second_ratio": 50 / 60, "seconds": 50}
    )
    assert found.settings == {
        "dataset": "scenes",
        "split": "val",
        "score": "map_seen",
        "smooth": 1,
        "references": ["none (seed 0)"],
    }
    own = found.details["reference"]
    assert found.details["reached"] is True
    assert (found.details["goal"], found.details["best"], found.details["final"]) == (0.4, 0.5, 0.4)
    assert found.details["score_at_third"] == pytest.approx(0.3)  # at step 200
    assert own["own_steps"] == pytest.approx(200 + 100 * 0.2 / 0.25)  # long before its end
    assert (own["steps"], own["seconds"], own["same_seed"]) == (600, pytest.approx(60), True)


def test_one_lucky_validation_reaches_nothing(tmp_path: Path) -> None:
    run = written(tmp_path, "lfi", [0.1, 0.6, 0.1, 0.4, 0.5, 0.6])
    reference = written(tmp_path, "none", [0.2, 0.3, 0.4, 0.5])
    assert scored(run, reference).scores["steps"] == pytest.approx(180)
    smooth = scored(run, reference, smooth=3)  # [.35, .267, .367, .333, .5, .55] to (.4 + .5) / 2
    assert smooth.details["goal"] == pytest.approx(0.45)
    assert smooth.scores["steps"] == pytest.approx(400 + 100 * (0.45 - 1 / 3) / (0.5 - 1 / 3))
    assert smooth.settings["smooth"] == ConvergenceConfig(references=(reference,)).smooth == 3
    with pytest.raises(ConfigError, match="smooth must be an odd number, got 2"):
        scored(run, reference, smooth=2)


def test_a_run_that_never_reaches_has_no_steps_and_says_so(tmp_path: Path) -> None:
    run = written(tmp_path, "lfi", [0.1, 0.35, 0.3], finished=False)
    found = scored(run, written(tmp_path, "none", [0.2, 0.4]))
    assert set(found.scores.values()) == {None}
    assert found.details["reached"] is False
    assert (found.details["best"], found.details["final"], found.details["finished"]) == (0.35, 0.3, False)


def test_the_reference_of_the_same_seed_counts_else_the_mean_of_all(tmp_path: Path) -> None:
    first = written(tmp_path, "none", [0.1, 0.2])
    second = written(tmp_path, "none-2", [0.2, 0.3, 0.5, 0.6], seed=1)
    curve = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    own = scored(written(tmp_path, "lfi-2", curve, seed=1), first, second)
    assert (own.details["goal"], own.scores["steps"]) == (0.6, pytest.approx(600))
    assert own.details["reference"]["runs"] == ["none-2 (seed 1)"]
    other = scored(written(tmp_path, "lfi-3", curve, seed=2), first, second)
    assert (other.details["goal"], other.scores["steps"]) == (pytest.approx(0.4), pytest.approx(400))
    assert other.details["reference"]["steps"] == 300
    assert other.details["reference"]["same_seed"] is False
    assert own.settings == other.settings  # so that seeds make one row of a table


def test_a_run_is_its_own_reference_where_it_first_has_its_final_score(tmp_path: Path) -> None:
    run = written(tmp_path, "none", [0.1, 0.3, 0.2])
    assert scored(run, run).scores["steps"] == pytest.approx(150)


def test_the_score_is_the_tasks_main_one_or_the_one_asked_for(tmp_path: Path) -> None:
    names: dict[str, Any] = {"score": "top1_seen", "task": "classification"}
    run, reference = written(tmp_path, "a", [0.1, 0.5], **names), written(tmp_path, "b", [0.1, 0.3], **names)
    assert scored(run, reference).settings["score"] == "top1_seen"
    with pytest.raises(ConfigError, match=r"logged map_seen .*found none"):
        scored(run, reference, score="map_seen")
    with pytest.raises(ConfigError, match="logged map_heldout"):
        scored(run, reference, score="map_heldout")  # logged, as null
    with pytest.raises(UnknownNameError, match="map_seen"):
        scored(run, reference, score="map_sen")


def test_a_torn_line_is_skipped_and_a_step_logged_twice_counts_once(tmp_path: Path) -> None:
    again = json.dumps({"event": "val", "step": 200, "map_seen": 0.2}) + "\n"
    run = written(tmp_path, "lfi", [0.1, 0.9], tail=again + '{"event": "val", "step": 300, "map_s')
    found = scored(run, written(tmp_path, "none", [0.1, 0.15]))
    assert found.scores["steps"] == pytest.approx(150)
    assert found.details["final"] == 0.2
    (run / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 1 must be JSON"):
        scored(run, run)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    run = written(tmp_path, "lfi", [0.1, 0.5])
    with pytest.raises(ConfigError, match="`reference=RUN`"):
        scored(run)
    with pytest.raises(ConfigError, match="must be finished"):
        scored(run, written(tmp_path, "stopped", [0.1], finished=False))
    for name, changed in {
        "data": {"dataset": {"name": "coco", "val_samples": 4}},
        "domains": {"seen_domains": ["grey"]},
        "split": {"settings": {"val_split": "test"}},
    }.items():
        with pytest.raises(ConfigError, match="validated alike"):
            scored(run, written(tmp_path, name, [0.1], **changed))
    with pytest.raises(ConfigError, match="no task"):
        scored(written(tmp_path, "distilled", [0.1], task="none"), run)
    with pytest.raises(RunError, match="run"):
        scored(run, tmp_path)


def test_it_is_a_protocol_and_reads_what_training_wrote(run_of: dict[str, Path]) -> None:
    config = ConvergenceConfig(references=(run_of["none"],))
    found = evaluate_runs([run_of["lfi"]], {"convergence": config})[run_of["lfi"]]["convergence"]
    assert read_results(run_of["lfi"], "convergence") == [found]
    assert found.details["goal"] == json.loads((run_of["none"] / "summary.json").read_text())["map_seen"]
    assert found.details["step_ms"] > 0


def test_of_several_kinds_of_control_the_best_is_the_reference(tmp_path: Path) -> None:
    """Kinds differ in settings, seeds do not; the best is by the mean over its seeds, not by its luckiest one."""
    run = written(tmp_path, "lfi", [0.2, 0.4, 0.6, 0.8])
    kinds = {"linear": (0.7, 0.1), "queries": (0.5, 0.6)}
    references = [
        written(
            tmp_path,
            f"{head}-{seed}",
            [0.0, final],
            seed=seed,
            settings={"val_split": "val", "head": head, "seed": seed},
        )
        for head, finals in kinds.items()
        for seed, final in enumerate(finals)
    ]
    result = scored(run, *references)
    assert result.details["reference"]["runs"] == ["queries-0 (seed 0)"]
    assert result.details["reference"]["kinds"] == 2
    assert result.details["goal"] == 0.5
    assert result.scores["step_ratio"] == pytest.approx(250 / 200)


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"targets": "/moved/shards", "data_root": "/moved"}},
        {"settings": {"query_scale": "1/d"}},  # what auto stands for
        {"settings": {"opt": None, "queries": "text", "slots": 16}},  # of an earlier release: one name less, two more
        {"targets_fingerprint": "ef"},  # of maps that the control does not learn
    ],
)
def test_seeds_of_one_control_are_one_kind_wherever_and_whenever_they_were_trained(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    """The luckiest seed alone would be the best of two kinds."""
    common = {"val_split": "val", "objective": "none", "head": "queries", "query_scale": "auto", "opt": "adamw"}
    references = []
    for seed, final in enumerate((0.5, 0.8, 0.5)):
        changes = other if seed == 1 else {}
        settings = common | {"targets": "/here/shards", "seed": seed} | changes.get("settings", {})
        record = {"targets_fingerprint": "ab"} | changes
        record["settings"] = {name: value for name, value in settings.items() if value is not None}
        references.append(written(tmp_path, f"none-{seed}", [0.0, final], seed=seed, **record))
    result = scored(written(tmp_path, "lfi", [0.2, 0.9], seed=7), *references)
    assert result.details["reference"]["kinds"] == 1
    assert result.details["goal"] == pytest.approx(0.6)


def test_controls_that_learned_from_other_maps_are_two_kinds(tmp_path: Path) -> None:
    settings = {"val_split": "val", "objective": "embedding", "targets": "/shards"}
    references = [
        written(tmp_path, f"embedding-{cache}", [0.0, final], settings=settings, targets_fingerprint=cache)
        for cache, final in (("ab", 0.4), ("ef", 0.6))
    ]
    result = scored(written(tmp_path, "lfi", [0.2, 0.9]), *references)
    assert (result.details["reference"]["kinds"], result.details["goal"]) == (2, 0.6)


def test_a_scale_of_queries_that_a_linear_head_has_not_makes_no_kind(tmp_path: Path) -> None:
    every = [{}, {"query_scale": "auto"}, {"query_scale": "1/d"}]  # the first of a release that had no choice
    references = [
        written(
            tmp_path,
            f"none-{seed}",
            [0.0, 0.4 + seed / 10],
            seed=seed,
            settings={"val_split": "val", "objective": "none", "head": "linear", "seed": seed, **each},
        )
        for seed, each in enumerate(every)
    ]
    result = scored(written(tmp_path, "lfi", [0.2, 0.9], seed=7), *references)
    assert (result.details["reference"]["kinds"], result.details["goal"]) == (1, pytest.approx(0.5))

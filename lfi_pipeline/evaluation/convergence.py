"""Protocol `convergence`: how soon a run reaches the score that a reference run ends with.

The measure is `step_ratio = steps / reference steps`: `steps` is where the validation curve of the run, as training
logged it, first reaches the final validation score of the reference (linear between validations), `reference steps` is
how many the reference took in all. Curves are smoothed first: a noisy one crosses a score before it has it. A run that
never reaches the score has no steps: a mean over seeds must say how many of how many seeds it is of.

References of several kinds (settings other than the seed) are controls, and the run is held against the best of them: the
kind whose final scores have the highest mean.

Seconds are steps times the run's own median step time, loading and validation left out: the clock in the metrics is
that of the process, which several runs may have shared. They compare runs of one machine at equal load only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.evaluation.config import ConvergenceConfig, EvaluationConfig
from lfi_pipeline.evaluation.metrics import Curve, score_at, smoothed, steps_to_reach
from lfi_pipeline.evaluation.protocols import ProtocolResult
from lfi_pipeline.training.run_dir import (
    METRICS,
    SUMMARY,
    canonical_settings,
    config_fields,
    read_metrics,
    summary_fields,
)
from lfi_pipeline.training.validate import main_score

_NOT_OF_A_KIND = ("seed", "targets", "data_root")


@dataclass(frozen=True, slots=True)
class _Trained:
    """A run's `config.json`, smoothed validation curve and `summary.json`; the summary is empty where the run was stopped."""

    path: Path
    record: Mapping[str, Any]
    curve: Curve
    summary: Mapping[str, Any]

    @property
    def final(self) -> float:
        return self.curve[-1][1]

    @property
    def steps(self) -> float:
        return self.curve[-1][0]

    @property
    def step_seconds(self) -> float | None:
        value = self.summary.get("step_ms")
        return float(value) / 1e3 if value else None


def convergence(run: Path, common: EvaluationConfig, config: ConvergenceConfig) -> ProtocolResult:
    """Compare the validation curve of `run` with the end of its references'; no weights are read.

    `step_ratio` is to all the steps of the reference. `details` also holds `score_at_third`, what the run had after a
    third of those steps, and of the reference `own_steps`, where it first reached its final score itself: it may have
    stood still for long.

    Raises:
        ConfigError: a reference is not finished, is of other data or another task, or no score is there to compare.
        RunError: a run cannot be read.
    """
    began = time.monotonic()
    own = config_fields(run)
    score = config.score or main_score(str(own.get("task")))
    if score is None:
        raise ConfigError(f"{run} has no task and so no validation score to compare: it cannot converge to one.")
    trained = _read(run, score, config.smooth)
    references = [_read(Path(path), score, config.smooth) for path in config.references]
    for reference in references:
        _require_comparable(trained, reference)
    best = _best_kind(references)
    same = [each for each in best if each.record.get("seed") == own.get("seed")]
    held = same or best
    goal, total = _mean([each.final for each in held]), _mean([each.steps for each in held])
    steps = steps_to_reach(trained.curve, goal)
    pace, paces = trained.step_seconds, [each.step_seconds for each in held]
    seconds = steps * pace if steps is not None and pace is not None else None
    spent = (
        _mean([each.steps * p for each, p in zip(held, paces, strict=True) if p is not None]) if all(paces) else None
    )
    first = [step for each in held if (step := steps_to_reach(each.curve, each.final)) is not None]
    return ProtocolResult(
        protocol="convergence",
        settings={
            "dataset": own["dataset"]["name"],
            "split": _split(own),
            "score": score,
            "smooth": config.smooth,
            "references": sorted(_name(each) for each in references),
        },
        scores={
            "step_ratio": None if steps is None else steps / total,
            "steps": steps,
            "second_ratio": seconds / spent if seconds is not None and spent else None,
            "seconds": seconds,
        },
        details={
            "reached": steps is not None,
            "goal": goal,
            "best": max(value for _, value in trained.curve),
            "final": trained.final,
            "finished": bool(trained.summary),
            "score_at_third": score_at(trained.curve, total / 3),
            "step_ms": None if pace is None else pace * 1e3,
            "reference": {
                "runs": [_name(each) for each in held],
                "kinds": len({_kind(each) for each in references}),
                "same_seed": bool(same),
                "steps": total,
                "own_steps": _mean(first),
                "seconds": spent,
            },
        },
        seconds=time.monotonic() - began,
    )


def _best_kind(references: Sequence[_Trained]) -> list[_Trained]:
    """Return the runs of the kind whose final scores have the highest mean."""
    kinds: dict[str, list[_Trained]] = {}
    for each in references:
        kinds.setdefault(_kind(each), []).append(each)
    return max(kinds.values(), key=lambda runs: _mean([run.final for run in runs]))


def _kind(run: _Trained) -> str:
    """Return what runs that differ in their seed alone have in common, wherever their data lay.

    The cache is known by its fingerprint; to objective `none` the maps in it are nothing.
    """
    settings = canonical_settings(run.record["settings"])
    content = None if settings["objective"] == "none" else run.record.get("targets_fingerprint")
    kept = {name: value for name, value in settings.items() if name not in _NOT_OF_A_KIND}
    return json.dumps([kept, run.record["dataset"].get("train_samples"), content], sort_keys=True)


def _read(run: Path, score: str, smooth: int) -> _Trained:
    curve = read_metrics(run).curve(score)
    if not curve:
        raise ConfigError(
            f"{run} must have logged {score} in validation, found none in {METRICS}. Name another `score`, or wait for "
            "the run's first epoch to end."
        )
    return _Trained(run, config_fields(run), smoothed(curve, smooth), summary_fields(run) or {})


def _require_comparable(trained: _Trained, reference: _Trained) -> None:
    if not reference.summary:
        raise ConfigError(f"{reference.path} must be finished, so that it has a final score; it has no {SUMMARY}.")
    ours, theirs = _validated(trained.record), _validated(reference.record)
    if ours != theirs:
        raise ConfigError(
            f"A run and its reference must be validated alike; {reference.path} has {theirs}, {trained.path} has "
            f"{ours}. Name another `reference`."
        )


def _validated(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must be equal for validation scores to be comparable."""
    dataset = record["dataset"]
    split = {"split": _split(record), **{name: record.get(name) for name in ("task", "seen_domains")}}
    return {"data set": dataset["name"], "images": dataset["val_samples"], **split}


def _split(record: Mapping[str, Any]) -> str:
    return str(record["settings"]["val_split"])


def _name(run: _Trained) -> str:
    return f"{run.record.get('name')} (seed {run.record.get('seed')})"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

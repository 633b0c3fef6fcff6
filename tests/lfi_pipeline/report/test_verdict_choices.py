"""Of trials that differ in some settings alone the best is taken, and told where it lies at the edge of the grid."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from lfi_pipeline.report.statistics import estimate
from lfi_pipeline.report.verdict import choices, choices_toml
from lfi_pipeline.report.views import Standing


def row(score: float, **settings: Any) -> Standing:
    scores = {"map_seen": value} if (value := estimate([score, score + 0.02])) else {}
    return Standing(settings=settings, seeds=(0, 1), scores=scores, runs=(f"run-{score}",))


def best_first(*rows: Standing) -> list[Standing]:
    return sorted(rows, key=lambda each: -each.scores["map_seen"].mean)


def rates(scores: Mapping[float, float], **settings: Any) -> list[Standing]:
    return [row(score, lr=lr, **settings) for lr, score in scores.items()]


def test_the_best_of_each_and_what_lies_at_the_edge() -> None:
    inside = rates({1e-3: 0.3, 2e-3: 0.5, 4e-3: 0.4}, objective="none")
    edge = rates({1e-3: 0.3, 2e-3: 0.5, 4e-3: 0.6}, objective="lfi")
    lfi, none = choices(best_first(*inside, *edge), ["lr", "weight"])
    assert (lfi.match, lfi.set, lfi.trials, lfi.edges) == ({"objective": "lfi"}, {"lr": 4e-3}, 3, ("lr",))
    assert (none.match, none.set, none.edges) == ({"objective": "none"}, {"lr": 2e-3}, ())
    assert none.trial.runs == ("run-0.5",)


def test_what_has_no_order_has_no_edge() -> None:
    rows = best_first(
        *rates({1e-3: 0.4, 2e-3: 0.5, 4e-3: 0.3}, query_scale="1/d"), row(0.4, lr=2e-3, query_scale="auto")
    )
    (best,) = choices(rows, ["lr", "query_scale"])
    assert (best.set, best.trials, best.edges) == ({"lr": 2e-3, "query_scale": "1/d"}, 4, ())


def test_a_single_trial_has_no_edge() -> None:
    (only,) = choices([row(0.5, objective="none", lr=1e-3)], ["lr"])
    assert (only.trials, only.edges) == (1, ())
    assert choices([], ["lr"]) == []


def test_a_weight_that_is_not_set_is_the_usual_one() -> None:
    weights: list[dict[str, str]] = [{"lfi": "25%"}, {}, {"lfi": "100%"}]
    inner, outer = (
        [row(s, lr=1e-3, weight=w) for s, w in zip(of, weights, strict=True)] for of in ((3, 5, 4), (3, 4, 5))
    )
    assert [each.edges for each in choices(best_first(*inner), ["weight"])] == [()]
    (chosen,) = choices(best_first(*outer), ["weight"])
    assert (chosen.set, chosen.edges) == ({"weight": {"lfi": "100%"}}, ("weight",))


def test_settings_that_follow_from_others_do_not_tell_trials_apart() -> None:
    vit = rates({1e-3: 0.3, 2e-3: 0.2}, student="vit", patch_size=8, student_arg={"depth": 4})
    cnn = rates({1e-3: 0.4, 2e-3: 0.5}, student="cnn", patch_size=None, student_arg={})
    found = choices(best_first(*vit, *cnn), ["lr"])
    assert [each.match for each in found] == [{"student": "cnn"}, {"student": "vit"}]


def test_the_text_is_toml_of_a_sweep() -> None:
    rows = best_first(
        *rates({1e-3: 0.3, 2e-3: 0.5}, weight={"lfi": "25%"}, hold_out=["photo", "grey"]),
        *rates({1e-3: 0.3, 2e-3: 0.4}, weight={}, hold_out=[]),
    )
    text = choices_toml(choices(rows, ["lr", "weight"]))
    assert text.startswith("# best of 2 trials, lr at the edge: map_seen 51.0 ± 12.7\n[[where]]\n")
    assert tomllib.loads(text)["where"] == [
        {"match": {"hold_out": ["photo", "grey"]}, "set": {"lr": 2e-3, "weight": {"lfi": "25%"}}},
        {"match": {"hold_out": []}, "set": {"lr": 2e-3}},
    ]

"""Of trials that differ in some settings alone the best is taken, and told where it lies at the edge of the grid."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfi_pipeline.core.options import build, flatten
from lfi_pipeline.report.statistics import estimate
from lfi_pipeline.report.verdict import choices_toml
from lfi_pipeline.report.views import Standing, choices, standings
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.sweep import plan_sweep, read_sweep


def row(score: float, **settings: Any) -> Standing:
    scores = {"map_seen": value} if (value := estimate([score, score + 0.02])) else {}
    return Standing(
        settings=settings, seeds=(0, 1), scores=scores, runs=(f"run-{score}",), recorded=(settings, settings)
    )


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


BASE = {"targets": "shards", "objective": "lfi"}


def swept(folder: Path, trials: Mapping[float, Mapping[str, Any]], tried: list[str]) -> str:
    """`chosen.toml` of finished runs with these scores; a setting `fingerprint` is that of the cache."""
    runs = []
    for number, (score, own) in enumerate(trials.items()):
        run = folder / f"run-{number}"
        run.mkdir(parents=True)
        settings = BASE | own
        fingerprint = settings.pop("fingerprint", "f00")
        config = {"settings": flatten(build(TrainConfig, settings)), "targets_fingerprint": fingerprint}
        (run / "config.json").write_text(json.dumps(config))
        (run / "summary.json").write_text(json.dumps({"map_seen": score}))
        runs.append(run)
    return choices_toml(choices(standings(runs), tried))


def planned(folder: Path, text: str, **grid: list[Any]) -> list[dict[str, Any]]:
    """Settings of the runs of a sweep with `text` in it."""
    lines = [f"{name} = {json.dumps(values)}" for name, values in grid.items()]
    file = folder / "next.toml"
    file.write_text("\n".join([text, "[grid]", *lines]))
    return [flatten(run.config) for run in plan_sweep(read_sweep(file), folder / "next")]


def test_caches_are_matched_by_their_paths_wherever_they_lay(tmp_path: Path) -> None:
    a, b, moved = (str(tmp_path / name) for name in ("shards-a", "shards-b", "elsewhere"))
    text = swept(
        tmp_path,
        {
            0.5: {"targets": a, "fingerprint": "aaa", "lr": 1e-3},
            0.4: {"targets": moved, "fingerprint": "aaa", "lr": 2e-3},
            0.3: {"targets": b, "fingerprint": "bbb", "lr": 3e-3},
        },
        ["lr"],
    )
    runs = planned(tmp_path, text, targets=[a, b, moved])
    assert {run["targets"]: run["lr"] for run in runs} == {a: 1e-3, moved: 1e-3, b: 3e-3}


def test_a_path_that_held_two_caches_tells_neither(tmp_path: Path) -> None:
    trials = {0.5: {"fingerprint": "aaa", "lr": 1e-3}, 0.4: {"fingerprint": "bbb", "lr": 2e-3}}
    text = swept(tmp_path, trials, ["lr"])
    assert tomllib.loads(text) == {}
    assert text.count("no match tells targets /") == 2
    assert "# lr = 0.002" in text


def test_a_scale_that_auto_stands_for_is_matched_however_it_is_written(tmp_path: Path) -> None:
    own = ["auto", "1/sqrt(d)", "1/d"]  # of lfi, auto is the second
    trials = {0.5 - n / 10: {"query_scale": scale, "lr": n + 1e-3} for n, scale in enumerate(own)}
    runs = planned(tmp_path, swept(tmp_path, trials, ["lr"]), targets=["x"], query_scale=own)
    assert [run["lr"] for run in runs] == [0.001, 0.001, 2.001]


def test_what_is_left_out_is_not_written_where_the_rest_tells_the_trials(tmp_path: Path) -> None:
    vit, cnn = "vit_tiny_patch16_224", "resnet18"
    trials = {
        0.5: {"student": vit, "image_size": 64, "lr": 1e-3, "ema": 0.9},
        0.4: {"student": vit, "image_size": 64, "lr": 2e-3},
        0.3: {"student": cnn, "lr": 3e-3},
        0.2: {"student": cnn, "lr": 4e-3, "ema": 0.99},
    }
    text = swept(tmp_path, trials, ["lr", "ema"])
    assert "# best of 2 trials, lr at the edge, ema left out: map_seen 30.0\n" in text
    runs = planned(tmp_path, text, targets=["x"], student=[vit, cnn])
    assert [(run["lr"], run["ema"]) for run in runs] == [(1e-3, 0.9), (3e-3, None)]


def test_what_no_match_can_say_is_said_to_the_reader(tmp_path: Path) -> None:
    text = swept(tmp_path, {0.5: {"lr": 1e-3}, 0.4: {"image_size": 64, "lr": 2e-3}}, ["lr"])
    by_hand = "# Not written, since no match tells image_size left out from the others. Set by hand for these:\n# lr = 0.001\n"
    assert text.startswith(f"# best of 1 trials: map_seen 50.0\n{by_hand}")
    runs = planned(tmp_path, text, targets=["x"], image_size=[64, 32], lr=[5e-3])
    assert [run["lr"] for run in runs] == [2e-3, 5e-3]


def test_trials_of_one_setting_are_the_base_of_the_next_sweep(tmp_path: Path) -> None:
    trials = {0.5: {"lr": 1e-3, "weight": {"lfi": "25%"}}, 0.4: {"lr": 2e-3}}
    text = swept(tmp_path, trials, ["lr", "weight"])
    (run,) = planned(tmp_path, text, targets=["x"])
    assert (run["lr"], run["weight"]) == (1e-3, {"lfi": "25.00%"})


def test_what_is_best_at_its_default_sets_nothing(tmp_path: Path) -> None:
    trials: dict[float, dict[str, Any]] = {
        0.5: {},
        0.4: {"weight": {"lfi": "25%"}},
        0.3: {"objective": "embedding", "weight": {"embedding": "25%"}},
    }
    text = swept(tmp_path, trials, ["weight"])
    assert text.startswith("# best of 2 trials, weight at the edge, weight left out: map_seen 50.0\n\n")
    runs = planned(tmp_path, text, targets=["x"], objective=["lfi", "embedding"])
    assert [run["weight"] for run in runs] == [{}, {"embedding": "25.00%"}]

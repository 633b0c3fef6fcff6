"""Labels of runs, which settings keep two runs apart, and what a group is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import UnknownNameError
from lfi_pipeline.report.groups import (
    SLOT_COUNT,
    SLOTS,
    base_label,
    choose_controls,
    comparable,
    gather,
    is_control,
    label_runs,
    rivals,
    shown,
    unequal_settings,
    validation_curve,
)
from lfi_pipeline.report.runs import Run, RunConfig, ValPoint


def config(objective: str = "lfi", settings: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    fields: dict[str, Any] = {
        "name": "run",
        "student": "vit_tiny_patch16_224",
        "maps": "teacher",
        "state": "persistent",
        "seed": 0,
        "epochs": 15,
        "batch_size": 64,
        "learning_rate": 0.001,
        "lambda_int": 0.3,
        "image_size": 64,
        "hold_out": (),
        "targets": "targets",
        "fingerprint": "ab" * 32,
        "teacher": "coca",
        "kind": "relevance",
        "dataset": "scenes",
        "split": "train",
        "train_samples": 4000,
        "val_samples": 800,
        "command": "",
        "raw": {"settings": settings or {}},
    }
    return RunConfig(objective=objective, **{**fields, **changes})


def run(objective: str = "lfi", scores: dict[int, tuple[float | None, float | None]] | None = None, **of: Any) -> Run:
    points = tuple(ValPoint(step=at, map_seen=one, map_heldout=two) for at, (one, two) in (scores or {}).items())
    return Run(
        path=Path(f"{objective}-{of.get('seed', 0)}"),
        config=config(objective, **of),
        train=(),
        validation=points,
        summary=None,
        scores=None,
        gallery=(),
    )


@pytest.mark.parametrize(
    ("objective", "changes", "label", "control"),
    [
        ("none", {}, "none", True),
        ("none", {"maps": "shuffled", "state": "reset"}, "none", True),  # neither touches a run without maps
        ("embedding", {"maps": "uniform"}, "embedding", True),
        ("lfi", {}, "lfi", False),
        ("lfi", {"maps": "uniform"}, "lfi · uniform maps", True),
        ("lfi", {"maps": "masks"}, "lfi · masks maps", False),  # a ceiling, which nobody must beat
        ("lfi", {"state": "reset"}, "lfi · reset", False),
        ("lfi+presence", {}, "lfi+presence", False),
        ("lfi+presence", {"maps": "shuffled"}, "lfi+presence · shuffled maps", True),
    ],
)
def test_a_label_names_what_a_run_learns(objective: str, changes: dict[str, Any], label: str, control: bool) -> None:
    made = config(objective, **changes)
    assert (base_label(made), is_control(made)) == (label, control)


def test_settings_differ_only_where_both_runs_heed_them() -> None:
    lfi = config()
    assert unequal_settings(lfi, config(seed=7, name="other", maps="shuffled", command="x")) == []
    assert unequal_settings(lfi, config(lambda_int=1.0, kind="gradcam", learning_rate=0.1)) == [
        "λ",
        "lr",
        "maps kind",
    ]
    none = config("none", lambda_int=None, kind="", fingerprint="", learning_rate=0.1)
    assert unequal_settings(lfi, none) == ["lr"]
    assert unequal_settings(lfi, config("embedding", fingerprint="cd" * 32)) == ["targets"]
    assert unequal_settings(config(settings={"opt": "adam"}), config(settings={"opt": "sgd"})) == ["opt"]
    earlier = config(settings={"head": "queries"})  # of a release that had no other optimizer
    assert unequal_settings(earlier, config(settings={"head": "queries", "opt": "adamw"})) == []


def test_the_weight_of_lfi_is_lambda_and_those_of_other_terms_are_settings() -> None:
    one, two = {"weight": {"lfi": 0.3, "presence": 1.0}}, {"weight": {"lfi": 0.9, "presence": 1.0}}
    assert unequal_settings(config("lfi+presence", one), config("lfi+presence", two)) == []
    three = {"weight": {"presence": 0.5}}
    assert unequal_settings(config("lfi+presence", one), config("lfi+presence", three)) == ["weight"]
    assert unequal_settings(config("lfi", one), config("lfi", three)) == []  # a term that neither has
    labels = label_runs([run("lfi+presence", settings=one), run("lfi+presence", settings=three)])
    assert list(labels) == ["lfi+presence · weight presence 0.5", "lfi+presence · weight presence 1.0"]


def test_a_scale_that_auto_stands_for_is_the_scale_of_runs_that_had_no_other() -> None:
    heads = {"head": "queries"}, {"head": "queries", "query_scale": "auto"}  # of an earlier release, of this one
    assert unequal_settings(*(config("lfi", settings) for settings in heads)) == []
    assert unequal_settings(*(config("none", settings) for settings in heads)) == ["query scale"]
    spelled = config("none", {"head": "queries", "query_scale": "1/d"})
    assert unequal_settings(config("none", heads[1]), spelled) == []
    linear = {"head": "linear", "query_scale": "1/d", "query_width": 16}
    assert unequal_settings(config("none"), config("none", linear)) == []  # a linear head without maps has no queries
    every = [{}, linear, *heads]
    labels = label_runs([run("none", settings=settings, seed=seed) for seed, settings in enumerate(every)])
    assert [(label, len(of)) for label, of in labels.items()] == [
        ("none · head linear", 2),
        ("none · head queries · query scale 1/d", 1),
        ("none · head queries · query scale 1/sqrt(d)", 1),
    ]


def test_a_setting_that_may_differ_does_not_split_a_label() -> None:
    runs = [run(seed=seed, hold_out=(domain,), epochs=epochs) for seed, domain, epochs in ((0, "art", 9), (1, "tv", 8))]
    assert [len(found) for found in label_runs(runs).values()] == [1, 1]
    assert set(label_runs(runs, across=["epochs"])) == {"lfi · hold out art", "lfi · hold out tv"}
    assert label_runs(runs, across=["hold out", "epochs"]) == {"lfi": runs}


def test_what_follows_from_a_setting_that_may_differ_may_differ_too() -> None:
    """A budget of steps gives each domain left out its own epochs; an ablation of epochs does not follow from it."""
    budget = {"art": 61, "tv": 64}
    runs = [run(seed=s, hold_out=(domain,), epochs=e) for s in (0, 1) for domain, e in budget.items()]
    assert set(label_runs(runs)) == {"lfi · hold out art", "lfi · hold out tv"}  # not which epochs that gave
    assert label_runs(runs, across=["hold out"]) == {"lfi": runs}
    tuned = [run(hold_out=each.config.hold_out, epochs=each.config.epochs, learning_rate=0.1) for each in runs]
    assert label_runs([*runs, *tuned], across=["hold out"]) == {"lfi · lr 0.001": runs, "lfi · lr 0.1": tuned}
    ablation = [run(hold_out=(domain,), epochs=epochs) for domain in budget for epochs in (10, 20)]
    assert set(label_runs(ablation, across=["hold out"])) == {"lfi · epochs 10", "lfi · epochs 20"}
    students = [run(hold_out=("art",), student="a"), run(hold_out=("tv",), student="b")]
    assert set(label_runs(students, across=["hold out"])) == {"lfi · student a", "lfi · student b"}


def test_a_rate_that_was_tuned_for_each_batch_size_is_not_what_is_named() -> None:
    own = [run(batch_size=64, learning_rate=1.0, lambda_int=1.0), run(batch_size=32, learning_rate=0.5, lambda_int=0.5)]
    assert set(label_runs(own)) == {"lfi · batch 64", "lfi · batch 32"}


def test_a_setting_that_another_determines_is_not_named() -> None:
    own = [run(student="a", learning_rate=1.0), run(student="b", learning_rate=0.5, image_size=96)]
    assert set(label_runs(own)) == {"lfi · student a", "lfi · student b"}
    more = [*own, run(student="b", learning_rate=0.25, image_size=96)]
    assert set(label_runs(more)) == {
        "lfi · student a · lr 1",
        "lfi · student b · lr 0.5",
        "lfi · student b · lr 0.25",
    }


def test_groups_keep_their_order_and_have_each_their_colour() -> None:
    runs = [run(learning_rate=1 / (1 + i), seed=i) for i in range(3)]
    runs += [run("lfi", maps="shuffled"), run("none", seed=1), run("none", seed=0), run("embedding+x")]
    groups, notes = gather(runs)
    assert [group.label for group in groups] == [
        "none",
        "lfi · lr 0.333333",
        "lfi · lr 0.5",
        "lfi · lr 1",
        "lfi · shuffled maps",
        "embedding+x",
    ]
    assert [each.config.seed for each in groups[0].runs] == [0, 1]
    slots = [group.slot for group in groups]
    assert (slots[0], slots[1], slots[4]) == (SLOTS["none"], SLOTS["lfi"], SLOTS["lfi · shuffled maps"])
    assert len(set(slots)) == len(groups)
    assert [note for note in notes if "“lr”" in note]
    many, _ = gather([run(learning_rate=1 / (1 + i)) for i in range(SLOT_COUNT + 2)])
    assert {group.slot for group in many[:SLOT_COUNT]} == set(range(SLOT_COUNT))
    assert all(0 <= group.slot < SLOT_COUNT for group in many)


def test_a_curve_has_the_steps_that_every_seed_scored() -> None:
    first = run(seed=0, scores={10: (0.1, None), 20: (0.2, 0.5), 30: (0.3, None)})
    second = run(seed=1, scores={10: (0.3, None), 20: (0.4, None)})
    assert validation_curve(first, heldout=True) == [(20.0, 0.5)]
    (group,), _ = gather([first, second])
    assert group.curve() == [(10, pytest.approx(0.2), 0.1, 0.3), (20, pytest.approx(0.3), 0.2, 0.4)]
    assert group.curve(heldout=True) == [(20, 0.5, 0.5, 0.5)]  # a seed without any such score has no curve


def test_a_control_has_the_same_head_where_one_has() -> None:
    linear, queries = ({"head": head, "opt": opt} for head, opt in (("linear", "adamw"), ("queries", "sgd")))
    lfi = config("lfi", {"head": "queries", "opt": "adamw"})
    plain = {"linear": config("none", linear), "queries": config("none", queries)}
    assert choose_controls({"lfi": lfi, **plain}) == {"lfi": "queries"}
    assert choose_controls({"lfi": lfi, "linear": plain["linear"]}) == {"lfi": "linear"}


def test_controls_and_rivals_train_the_same_student_on_the_same_data() -> None:
    configs = {
        "none, tuned": config("none", learning_rate=0.1),
        "none": config("none"),
        "none, again": config("none"),
        "none, large": config("none", student="large"),
        "embedding": config("embedding", batch_size=8),
        "shuffled": config(maps="shuffled"),
        "masks": config(maps="masks"),
        "lfi": config(),
        "lfi, other data": config(dataset="coco"),
    }
    assert choose_controls(configs) == dict.fromkeys(("embedding", "shuffled", "masks", "lfi"), "none")
    assert comparable(configs["lfi"], configs["none, tuned"])
    assert not comparable(configs["lfi"], configs["none, large"])
    assert rivals("lfi", configs) == ["none, tuned", "none", "none, again", "embedding", "shuffled"]
    assert rivals("shuffled", configs) == rivals("masks", configs) == rivals("none", configs) == []
    named = choose_controls(configs, "shuffled")
    assert set(named) == configs.keys() - {"shuffled"}
    assert set(named.values()) == {"shuffled"}
    with pytest.raises(UnknownNameError, match="Unknown control 'shufled'"):
        choose_controls(configs, "shufled")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (("art", 3), "art+3"),
        ([], "none"),
        (None, "none"),
        (1e-05, "1e-05"),
        (0.5, "0.5"),
        (True, "True"),
        ("0123456789" * 4, "01234567"),
        ("0123456789" * 3 + "012345678", "0123456789" * 3 + "012345678"),  # 39 digits are no digest
    ],
)
def test_a_setting_is_shown_short(value: object, text: str) -> None:
    assert shown(value) == text

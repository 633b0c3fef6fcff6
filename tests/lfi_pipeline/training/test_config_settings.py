"""Flat names: all of them, there and back, and what is refused on the way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.options import build, declared, defaults, flatten, typed
from lfi_pipeline.data.config import MIXES, Augmentation, MixConfig, Photometric
from lfi_pipeline.students import QueryConfig, StudentConfig
from lfi_pipeline.students.config import HEADS
from lfi_pipeline.training.config import (
    MAPS,
    PRECISIONS,
    SCHEDULES,
    TASKS,
    TERMS,
    WEIGHT_SCHEDULES,
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    Weight,
)

NAMES = st.text("abcdefgh_/.- é", min_size=1, max_size=8)
POSITIVE = st.floats(min_value=1e-12, max_value=1e6)
SHARE = st.floats(min_value=0.01, max_value=0.99)
PLAIN = st.one_of(st.integers(-9, 9), st.booleans(), NAMES, st.lists(st.integers(-9, 9), max_size=2))

STREAMS = st.builds(
    DataConfig,
    targets=NAMES.map(Path),
    data_root=st.none() | NAMES.map(Path),
    hold_out=st.lists(NAMES, max_size=3).map(tuple),
    maps=st.sampled_from(MAPS),
    words=st.none() | st.integers(1, 99),
    mirror_maps=st.booleans(),
    augmentation=st.builds(
        Augmentation,
        scale=SHARE.map(lambda least: (least, 1.0)),
        ratio=st.floats(1, 3).map(lambda most: (1 / most, most)),
        hflip=SHARE,
    ),
    photometric=st.builds(Photometric, ops=st.integers(0, 3)),
    mix=st.builds(MixConfig, mix=st.sampled_from(MIXES), maps_probability=SHARE, mixup=SHARE),
    epochs=st.integers(1, 99),
    batch_size=st.integers(1, 9).map(lambda n: 6 * n),
    seed=st.integers(0, 99),
)
STUDENTS = st.builds(
    StudentConfig,
    name=NAMES,
    image_size=st.none() | st.integers(1, 512),
    patch_size=st.none() | st.integers(1, 32),
    kwargs=st.dictionaries(NAMES, PLAIN, max_size=2),
    pretrained=st.booleans(),
    taps=st.lists(st.integers(0, 11), max_size=3).map(tuple),
)
OPTIMIZERS = st.builds(
    OptimizerConfig,
    name=NAMES,
    lr=POSITIVE,
    weight_decay=POSITIVE,
    query_lr=POSITIVE,
    layer_decay=st.none() | SHARE,
    clip_grad=POSITIVE,
    schedule=st.sampled_from(SCHEDULES),
    warmup_epochs=st.integers(0, 9),
    ema=st.none() | SHARE,
)
WEIGHTS = st.builds(Weight, st.floats(0, 1e6), st.sampled_from(WEIGHT_SCHEDULES)) | st.builds(
    Weight, st.integers(0, 400).map(lambda percent: percent / 100), st.sampled_from(WEIGHT_SCHEDULES), st.just(True)
)


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    terms = ["lfi", *draw(st.lists(st.sampled_from([t for t in TERMS if t not in ("lfi", "attention")]), unique=True))]
    return TrainConfig(
        data=draw(STREAMS),
        student=draw(STUDENTS),
        head=draw(st.sampled_from(HEADS)),
        queries=draw(
            st.builds(QueryConfig, state=st.sampled_from(["persistent", "reset"]), heads=st.sampled_from([1, 2, 4]))
        ),
        optimizer=draw(OPTIMIZERS),
        objective="+".join(terms),
        weights=draw(st.dictionaries(st.sampled_from(terms), WEIGHTS)),
        task=draw(st.sampled_from([t for t in TASKS if t != "none"])),
        val_split=draw(NAMES),
        precision=draw(st.sampled_from(PRECISIONS)),
        grad_accum_steps=draw(st.sampled_from([1, 2, 3])),
    )


@given(config=configs())
@settings(max_examples=60, deadline=None)
def test_there_and_back(config: TrainConfig) -> None:
    flat = flatten(config)
    assert build(TrainConfig, flat) == config
    assert build(TrainConfig, json.loads(json.dumps(flat))) == config


def places(kind: type, prefix: str = "") -> list[tuple[str, dataclasses.Field[Any]]]:
    """Dotted way to every field that is no dataclass itself."""
    found = []
    for field in dataclasses.fields(kind):
        made = field.default_factory
        if field.name == "data":
            found += places(DataConfig, "data.")
        elif isinstance(made, type) and dataclasses.is_dataclass(made):
            found += places(made, f"{prefix}{field.name}.")
        else:
            found.append((prefix + field.name, field))
    return found


def test_every_field_has_one_flat_name() -> None:
    found = sorted(".".join(each.place) for each in declared(TrainConfig).values())
    assert found == sorted(place for place, _ in places(TrainConfig))
    assert all(name.isidentifier() for name in declared(TrainConfig))


def test_none_means_the_default() -> None:
    """Files leave out what is None, so no field may mean something else by it than nothing given."""
    for place, field in places(TrainConfig):
        if "None" in str(field.type):
            assert field.default is None, place


def test_every_type_has_a_rule() -> None:
    for name in declared(TrainConfig):
        with pytest.raises(ConfigError, match=rf"^{name} must be .*, got .*object"):
            typed(declared(TrainConfig)[name], object())


def test_defaults_are_of_the_dataclasses() -> None:
    default = defaults(TrainConfig)
    assert list(default) == list(declared(TrainConfig))
    assert default["targets"] is None
    assert default["lr"] == OptimizerConfig().lr
    assert build(TrainConfig, default | {"targets": "x"}) == TrainConfig(data=DataConfig(targets=Path("x")))


def test_what_is_left_out_or_none_is_the_default() -> None:
    plain = TrainConfig(data=DataConfig(targets=Path("x")))
    assert (
        build(TrainConfig, {"targets": "x"})
        == build(TrainConfig, {"targets": "x", "epochs": None, "image_size": None})
        == plain
    )


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", "3", "a whole number, got '3'"),
        ("epochs", 3.0, "a whole number"),
        ("epochs", True, "a whole number, got True"),
        ("lr", "1e-3", "a finite number"),
        ("lr", False, "a finite number"),
        ("hflip", float("nan"), "a finite number, got nan"),
        ("weight_decay", float("inf"), "a finite number"),
        ("pretrained", 1, "true or false, got 1"),
        ("student", ["a"], "a text"),
        ("targets", 3, "a path"),
        ("hold_out", "grey", "a list of texts, got 'grey'"),
        ("hold_out", [1], "a list of texts"),
        ("taps", "1,3", "a list of whole numbers"),
        ("taps", [1, True], "a list of whole numbers"),
        ("weight", 0.1, "a table, such as TERM=VALUE"),
        ("weight", {"lfi": None}, "a table, such as TERM=VALUE"),
        ("weight", {"lfi": True}, "a table, such as TERM=VALUE"),
        ("student_arg", ["depth=3"], "a table of plain values"),
        ("student_arg", {"act_layer": None}, "plain values"),
        ("student_arg", {"a": [{"b": {1, 2}}]}, "plain values"),
    ],
)
def test_wrong_types(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be .*{wanted}"):
        build(TrainConfig, {"targets": "x", name: value})


def test_a_wrong_weight_names_its_term() -> None:
    with pytest.raises(ConfigError, match=r"weight: lfi: .*such as 50%.* got 'much'"):
        build(TrainConfig, {"targets": "x", "weight": {"lfi": "much"}})


def test_a_whole_number_is_a_number() -> None:
    config = build(TrainConfig, {"targets": "x", "lr": 1})
    assert isinstance(config.optimizer.lr, float)


def test_unknown_names_list_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'lr'") as raised:
        build(TrainConfig, {"targets": "x", "lerning_rate": 1.0})
    assert "student_arg" not in str(raised.value)  # not all forty


def test_targets_must_be_given() -> None:
    for flat in ({}, {"targets": None}):
        with pytest.raises(ConfigError, match="lfi extract-teacher"):
            build(TrainConfig, flat)

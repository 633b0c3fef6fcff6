"""Every setting that cannot work is refused where it is given, with what must hold and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.data.augment import Augmentation
from lfi_pipeline.students import QueryConfig
from lfi_pipeline.training.config import DEFAULT_WEIGHT, Machine, OptimizerConfig, StreamConfig, TrainConfig, Weight


def stream(**changes: Any) -> StreamConfig:
    return StreamConfig(targets=Path("shards"), **changes)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"stream": stream()} | changes)


def test_the_defaults_are_valid() -> None:
    default = config()
    assert (default.objective, default.stream.maps, default.precision) == ("lfi", "teacher", "fp32")


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [
        ("objective", "lif", "embedding, lfi, logits, none, presence"),
        ("objective", "lfi+embeding", "Did you mean 'embedding'"),
        ("objective", "", "lfi"),
        ("objective", "lfi+", "lfi"),
        ("precision", "fp8", "bf16, fp32"),
        ("task", "classes", "auto, classification, multi-label, none"),
    ],
)
def test_unknown_names_list_the_choices(field: str, value: str, choices: str) -> None:
    with pytest.raises(UnknownNameError, match=choices):
        config(**{field: value})


def test_unknown_names_of_the_parts() -> None:
    with pytest.raises(UnknownNameError, match=r"random.*shuffled, teacher, uniform"):
        stream(maps="random")
    with pytest.raises(UnknownNameError, match=r"step.*constant, cosine, linear"):
        OptimizerConfig(schedule="step")


def test_terms_of_an_objective() -> None:
    assert config(objective="none").terms == ()
    assert config(objective="lfi+embedding").terms == ("lfi", "embedding")
    for twice in ("lfi+lfi", "none+lfi", "lfi+none"):
        with pytest.raises(ConfigError, match=r"once|alone"):
            config(objective=twice)


@pytest.mark.parametrize(
    ("objective", "used"), [("none", False), ("embedding", False), ("lfi", True), ("embedding+presence", True)]
)
def test_who_carries_queries(objective: str, used: bool) -> None:
    assert config(objective=objective).uses_queries is used


def test_weights_belong_to_terms_of_the_objective() -> None:
    chosen = config(objective="lfi+embedding", weights={"lfi": Weight(3.0)})
    assert chosen.weight("lfi") == Weight(3.0)
    assert chosen.weight("embedding") == DEFAULT_WEIGHT
    with pytest.raises(ConfigError, match=r"'embedding'.*lfi"):
        config(objective="embedding", weights={"lfi": Weight(3.0)})


@pytest.mark.parametrize("objective", ["none", "embedding"])
@pytest.mark.parametrize("maps", ["shuffled", "uniform"])
def test_controls_of_the_maps_belong_to_lfi(objective: str, maps: str) -> None:
    with pytest.raises(ConfigError, match=f"{maps}.*control of the term 'lfi'.*{objective}"):
        config(stream=stream(maps=maps), objective=objective)
    config(stream=stream(maps=maps), objective="embedding+lfi")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "none", "objective": "none"}, "nothing to learn"),
        ({"task": "none", "objective": "logits"}, "needs a task"),
        ({"objective": "presence", "queries": QueryConfig(mode="learned")}, "mode 'text'"),
        ({"accumulate": 0}, "accumulate"),
        ({"accumulate": 3}, "divide the batch size 64, got 3"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**changes)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (stream, "epochs", 0),
        (stream, "batch_size", 0),
        (stream, "seed", -1),
        (OptimizerConfig, "learning_rate", 0.0),
        (OptimizerConfig, "learning_rate", -1e-3),
        (OptimizerConfig, "learning_rate", float("nan")),
        (OptimizerConfig, "learning_rate", float("inf")),
        (OptimizerConfig, "clip", 0.0),
        (OptimizerConfig, "warmup_epochs", -1),
        (OptimizerConfig, "weight_decay", -0.1),
        (OptimizerConfig, "weight_decay", float("nan")),
        (OptimizerConfig, "layer_decay", 0.0),
        (OptimizerConfig, "layer_decay", 1.0),
        (OptimizerConfig, "ema", 1.0),
        (OptimizerConfig, "ema", float("nan")),
        (Machine, "workers", -1),
        (Machine, "keep_every", -1),
        (Machine, "checkpoint_minutes", float("nan")),
    ],
)
def test_numbers_out_of_range_name_field_and_value(part: Any, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){field}.*{value}"):
        part(**{field: value})


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (stream, "epochs", 1),
        (stream, "batch_size", 1),
        (stream, "seed", 0),
        (OptimizerConfig, "warmup_epochs", 0),
        (OptimizerConfig, "weight_decay", 0.0),
        (Machine, "workers", 0),
        (Machine, "checkpoint_minutes", 0.0),
    ],
)
def test_the_least_allowed_value_is_allowed(part: Any, field: str, value: Any) -> None:
    assert getattr(part(**{field: value}), field) == value


@pytest.mark.parametrize("options", [{"least_area": 0.0}, {"least_area": 1.1}, {"aspect": 0.9}, {"flip": 1.5}])
def test_augmentation_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        Augmentation(**options)


def test_equal_streams_are_one_key() -> None:
    assert hash(stream(hold_out=("grey",))) == hash(stream(hold_out=("grey",)))
    assert len({stream(), stream(), stream(seed=1)}) == 2

"""Every setting that cannot work is refused where it is given, with what must hold and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.data.config import Augmentation
from lfi_pipeline.training.config import (
    DEFAULT_WEIGHT,
    DataConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    Weight,
)


def data(**changes: Any) -> DataConfig:
    return DataConfig(targets=Path("shards"), **changes)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"data": data()} | changes)


def test_the_defaults_are_valid() -> None:
    default = config()
    assert (default.objective, default.data.maps, default.precision) == ("lfi", "teacher", "fp32")


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
        data(maps="random")
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
    assert config(objective=objective, head="linear").uses_queries is used
    assert config(objective=objective).uses_queries  # they are the head


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
        config(data=data(maps=maps), objective=objective)
    config(data=data(maps=maps), objective="embedding+lfi")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "none", "objective": "none"}, "nothing to learn"),
        ({"task": "none", "objective": "logits"}, "needs a task"),
        ({"grad_accum_steps": 0}, "grad_accum_steps"),
        ({"grad_accum_steps": 3}, "divide the batch size 64, got 3"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**changes)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (data, "epochs", 0),
        (data, "batch_size", 0),
        (data, "seed", -1),
        (OptimizerConfig, "lr", 0.0),
        (OptimizerConfig, "lr", -1e-3),
        (OptimizerConfig, "lr", float("nan")),
        (OptimizerConfig, "lr", float("inf")),
        (OptimizerConfig, "clip_grad", 0.0),
        (OptimizerConfig, "warmup_epochs", -1),
        (OptimizerConfig, "weight_decay", -0.1),
        (OptimizerConfig, "weight_decay", float("nan")),
        (OptimizerConfig, "layer_decay", 0.0),
        (OptimizerConfig, "layer_decay", 1.0),
        (OptimizerConfig, "ema", 1.0),
        (OptimizerConfig, "ema", float("nan")),
        (RuntimeConfig, "workers", -1),
        (RuntimeConfig, "keep_every", -1),
        (RuntimeConfig, "checkpoint_minutes", float("nan")),
    ],
)
def test_numbers_out_of_range_name_field_and_value(part: Any, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){field}.*{value}"):
        part(**{field: value})


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (data, "epochs", 1),
        (data, "batch_size", 1),
        (data, "seed", 0),
        (OptimizerConfig, "warmup_epochs", 0),
        (OptimizerConfig, "weight_decay", 0.0),
        (RuntimeConfig, "workers", 0),
        (RuntimeConfig, "checkpoint_minutes", 0.0),
    ],
)
def test_the_least_allowed_value_is_allowed(part: Any, field: str, value: Any) -> None:
    assert getattr(part(**{field: value}), field) == value


@pytest.mark.parametrize(
    "options", [{"hflip": 1.5}, {"scale": (0.0, 1.0)}, {"scale": (1.0, 1.1)}, {"ratio": (1.1, 0.9)}]
)
def test_augmentation_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be"):
        Augmentation(**options)


def test_equal_streams_are_one_key() -> None:
    assert hash(data(hold_out=("grey",))) == hash(data(hold_out=("grey",)))
    assert len({data(), data(), data(seed=1)}) == 2

"""Every setting that cannot work is refused where it is given, with what must hold and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.data.replay import Augmentation
from lfi_pipeline.errors import ConfigError, UnknownNameError
from lfi_pipeline.training import TrainConfig

TARGETS = Path("shards")


def test_the_defaults_are_valid() -> None:
    config = TrainConfig(targets=TARGETS)
    assert (config.objective, config.maps, config.precision) == ("lfi", "teacher", "fp32")


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [
        ("objective", "lif", "embedding, lfi, none"),
        ("maps", "random", "shuffled, teacher, uniform"),
        ("precision", "fp16", "bf16, fp32"),
    ],
)
def test_unknown_names_list_the_choices(field: str, value: str, choices: str) -> None:
    with pytest.raises(UnknownNameError, match=f"{value}.*{choices}"):
        TrainConfig(targets=TARGETS, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", ["none", "embedding"])
@pytest.mark.parametrize("maps", ["shuffled", "uniform"])
def test_controls_of_the_maps_belong_to_lfi(objective: str, maps: str) -> None:
    with pytest.raises(ConfigError, match=f"{maps}.*control of objective 'lfi'.*{objective}"):
        TrainConfig(targets=TARGETS, objective=objective, maps=maps)
    TrainConfig(targets=TARGETS, maps=maps)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("lambda_int", -0.1),
        ("workers", -1),
        ("warmup_epochs", -1),
        ("seed", -1),
        ("weight_decay", -0.1),
    ],
)
def test_numbers_out_of_range_name_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){field}.*{value}"):
        TrainConfig(targets=TARGETS, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 1), ("batch_size", 1), ("lambda_int", 0.0), ("workers", 0), ("warmup_epochs", 0), ("seed", 0)],
)
def test_the_least_allowed_value_is_allowed(field: str, value: Any) -> None:
    assert getattr(TrainConfig(targets=TARGETS, **{field: value}), field) == value


@pytest.mark.parametrize("options", [{"least_area": 0.0}, {"least_area": 1.1}, {"aspect": 0.9}, {"flip": 1.5}])
def test_augmentation_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        Augmentation(**options)

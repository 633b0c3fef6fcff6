"""Declarations: read once, used by everything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.options import (
    Alias,
    Option,
    build,
    check,
    command_line,
    command_words,
    current_names,
    declared,
    defaults,
    flatten,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """A group."""

    lr: Annotated[float, Option("Peak.", gt=0, aliases=("learning_rate",))] = 0.5
    scale: Annotated[
        tuple[float, float], Option("Crop.", gt=0, le=1, aliases=(Alias("least", float, lambda low: (low, 1.0)),))
    ] = (0.5, 1.0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    """A config with a group."""

    targets: Annotated[Path, Option("The cache.")]
    inner: Annotated[Inner, Option(panel="Inside")] = field(default_factory=Inner)
    name: Annotated[str, Option("Which.", name="model")] = "a"
    taps: Annotated[tuple[int, ...], Option("Places.", ge=0)] = ()
    words: Annotated[int | None, Option("Most.", ge=1)] = None
    kwargs: Annotated[Mapping[str, Any], Option("More.")] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)


def test_groups_are_flat_and_keep_their_place() -> None:
    assert list(declared(Outer)) == ["targets", "lr", "scale", "model", "taps", "words", "kwargs"]
    assert declared(Outer)["lr"].place == ("inner", "lr")
    assert declared(Outer)["model"].place == ("name",)
    assert [declared(Outer)[name].panel for name in ("targets", "lr")] == [None, "Inside"]
    assert declared(Outer)["targets"].required


def test_there_and_back() -> None:
    config = Outer(targets=Path("x"), inner=Inner(lr=1, scale=(0.1, 0.2)), taps=(1, 2), kwargs={"depth": 3})
    flat = flatten(config)
    assert flat == json.loads(json.dumps(flat))
    assert build(Outer, flat) == config
    assert defaults(Outer) == flatten(Outer(targets=Path("x"))) | {"targets": None}


def test_what_is_left_out_or_none_is_the_default() -> None:
    assert build(Outer, {"targets": "x", "lr": None}) == Outer(targets=Path("x"))
    with pytest.raises(ConfigError, match=r"targets must be given, got none\. The cache\.") as raised:
        build(Outer, {})
    assert raised.value.argument == "targets"


def test_a_config_that_is_made_in_python_is_checked_and_made_fitting() -> None:
    config = Outer(targets="x", taps=[1])  # type: ignore[arg-type]
    assert (config.targets, config.taps) == (Path("x"), (1,))
    assert isinstance(Inner(lr=1).lr, float)
    with pytest.raises(ConfigError, match="lr must be positive and finite, got 0") as raised:
        Inner(lr=0)
    assert raised.value.argument == "lr"


def test_older_names_are_read_and_translated() -> None:
    assert build(Outer, {"targets": "x", "learning_rate": 2}).inner.lr == 2
    assert build(Outer, {"targets": "x", "least": 0.25}).inner.scale == (0.25, 1.0)
    assert current_names(Outer, {"least": 0.25, "learning_rate": 1}) == {"scale": (0.25, 1.0), "lr": 1}
    with pytest.raises(ConfigError, match="lr must be given once, found it under learning_rate and lr"):
        build(Outer, {"targets": "x", "learning_rate": 2, "lr": 1})
    with pytest.raises(ConfigError, match="least must be a finite number"):
        build(Outer, {"targets": "x", "least": "much"})


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown setting 'lerning_rate'. Did you mean 'lr'\?"):
        build(Outer, {"targets": "x", "lerning_rate": 1})
    assert current_names(Outer, {"later": 3, "learning_rate": 1}, strict=False) == {"later": 3, "lr": 1}


def test_a_group_may_have_other_defaults_where_it_stands() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Around:
        inner: Inner = field(default_factory=lambda: Inner(lr=0.25))

    hints = {"inner": Inner}
    Around.__annotations__ = hints
    assert declared(Around)["lr"].default == 0.25
    assert build(Around, {"scale": [0.3, 0.4]}).inner == Inner(lr=0.25, scale=(0.3, 0.4))
    assert build(Around, {}).inner == Inner(lr=0.25)


def test_mistakes_of_a_declaration_are_told() -> None:
    @dataclass(frozen=True)
    class Bare:
        size: int = 3

    Bare.__annotations__ = {"size": int}
    with pytest.raises(TypeError, match=r"Bare\.size must be Annotated"):
        declared(Bare)

    twice = dataclasses.make_dataclass(
        "Twice", [("a", Annotated[int, Option("")], 1), ("b", Annotated[int, Option("", name="a")], 2)]
    )
    with pytest.raises(TypeError, match="Twice declares the option 'a' twice"):
        declared(twice)


def test_commands_as_they_are_typed() -> None:
    words = command_words("evaluate", Path("a b"), probes=False, quick=True, views=["x", "y"], run=(1, 2), gone=None)
    assert words == ("evaluate", "a b", "--no-probes", "--quick", "--views", "x,y", "--run", "1", "--run", "2")
    assert command_line("evaluate", Path("a b"), out="c") == "lfi evaluate 'a b' --out c"

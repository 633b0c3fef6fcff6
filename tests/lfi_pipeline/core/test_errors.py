"""Errors that a user can cause: what they say, and that they are caught as the builtin of their kind."""

from __future__ import annotations

import inspect

import pytest

from lfi_pipeline.core import errors
from lfi_pipeline.core.errors import (
    ConfigError,
    ImageReadError,
    LFIError,
    NotTargetsError,
    OutputWriteError,
    RunLockedError,
    SpecMismatchError,
    UnknownNameError,
)

CLASSES = [
    each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, LFIError) and each != LFIError
]


def test_an_unknown_name_lists_its_choices_sorted_and_the_nearest() -> None:
    error = UnknownNameError("teacher", "cocoa", ["siglip", "coca", "clip"], argument="teacher")
    assert str(error) == "Unknown teacher 'cocoa'. Did you mean 'coca'? Choices: clip, coca, siglip."
    assert error.argument == "teacher"


def test_what_begins_with_the_name_is_nearest_and_of_many_choices_the_nearest_are_listed() -> None:
    models = ["gcvit_tiny", "vit_tiny_patch16_384", "vit_tiny_patch16_224", *(f"resnet{i}" for i in range(60))]
    text = str(UnknownNameError("student", "vit_tiny", models))
    assert (
        "Did you mean 'vit_tiny_patch16_224'? Choices: vit_tiny_patch16_224, vit_tiny_patch16_384, gcvit_tiny" in text
    )
    assert text.endswith(" and 51 more.")
    assert "Did you mean" not in str(UnknownNameError("student", "qqqq", models))
    assert str(UnknownNameError("kind", "", ["a", "b"])) == "Unknown kind ''. Choices: a, b."


@pytest.mark.parametrize(
    ("name", "near", "told"),
    [
        ("zzz", None, "Unknown kind 'zzz'. Choices: ab, cd."),
        ("zzz", "cd", "Unknown kind 'zzz'. Did you mean 'cd'? Choices: ab, cd."),
        ("abb", "cd", "Unknown kind 'abb'. Did you mean 'cd'? Choices: ab, cd."),  # a caller's choice goes first
    ],
)
def test_nothing_is_proposed_that_is_not_near_unless_the_caller_does(name: str, near: str | None, told: str) -> None:
    error = UnknownNameError("kind", name, iter(["cd", "ab"]), near=near)
    assert str(error) == told
    assert error.argument is None


@pytest.mark.parametrize(
    "inner",
    [
        UnknownNameError("student", "resnet", ["resnet18"], argument="student"),
        ConfigError("lr must be above 0, got 0.", argument="lr"),
        OutputWriteError("the disk is full."),
        SpecMismatchError("words: 3 != 4"),
    ],
)
def test_an_error_within_a_file_keeps_its_class_and_names_no_argument(inner: LFIError) -> None:
    before = inner.argument
    outer = inner.within("run.toml").within("sweep.toml")
    assert type(outer) is type(inner)
    assert str(outer) == f"sweep.toml: run.toml: {inner}"
    assert outer.argument is None
    assert inner.argument == before


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_also_the_builtin_that_a_caller_catches(kind: type[LFIError]) -> None:
    builtins = (ValueError, ImportError, OSError, RuntimeError)
    assert sum(issubclass(kind, each) for each in builtins) == 1
    assert kind.__doc__


def test_a_more_special_error_is_caught_with_the_general_one() -> None:
    with pytest.raises(errors.TargetsError, match="no cache"):
        raise NotTargetsError("no cache")
    with pytest.raises(errors.RunError):
        raise RunLockedError("process 3 trains here")
    with pytest.raises(OSError, match=r"a\.jpg"):
        raise ImageReadError("a.jpg cannot be decoded")

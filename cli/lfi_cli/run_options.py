"""Options of commands that train: what they are and what they become."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfi_pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from lfi_pipeline.training import Machine

_MACHINE = "Machine (changes nothing that is learned)"
WorkersOption = Annotated[int | None, typer.Option(help="Loader processes.", rich_help_panel=_MACHINE)]
TrainDeviceOption = Annotated[
    str | None, typer.Option(help="auto (CUDA where there is one), cpu, cuda or cuda:N.", rich_help_panel=_MACHINE)
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Where metrics go beside metrics.jsonl: tensorboard, wandb, trackio, or none; may be repeated.",
        rich_help_panel=_MACHINE,
    ),
]
CheckpointOption = Annotated[
    float | None, typer.Option(help="Minutes between checkpoints within an epoch.", rich_help_panel=_MACHINE)
]
KeepOption = Annotated[
    int | None,
    typer.Option(help="Keep the weights of every N-th epoch beside last and best; 0: none.", rich_help_panel=_MACHINE),
]


def machine_of(options: Mapping[str, Any]) -> Machine:
    """Return the machine that the given ones of `options` describe."""
    from lfi_pipeline.training import Machine

    names = Machine.__dataclass_fields__
    given = {name: value for name, value in options.items() if name in names and _is_given(value)}
    if "track" in given:
        given["track"] = tuple(tracker for tracker in given["track"] if tracker != "none")
    return Machine(**given)


def settings_over(base: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings `base` with the given ones of `options` over them; tables are merged entry by entry.

    Raises:
        ConfigError: an option that is not written as it must be.
    """
    from lfi_pipeline.training.settings import FIELDS

    given = {name: value for name, value in options.items() if name in FIELDS and _is_given(value)}
    for name, read in (("student_arg", _arguments), ("weight", _weights)):
        if name in given:
            given[name] = {**base.get(name, {}), **read(given[name])}
    if "taps" in given:
        given["taps"] = _indices(given["taps"])
    for name, value in given.items():
        if isinstance(value, Path):
            given[name] = str(value.resolve())
    return {**base, **given}


def _is_given(value: Any) -> bool:
    """Whether an option was given; one that may be repeated and was not is an empty sequence."""
    return value is not None and value not in ((), [])


def _arguments(pairs: Sequence[str]) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--student-arg must be KEY=VALUE, such as depth=6, got {pair!r}.")
        try:
            keywords[key] = json.loads(value)
        except json.JSONDecodeError:
            keywords[key] = value
    return keywords


def _weights(pairs: Sequence[str]) -> dict[str, str]:
    weights = {}
    for pair in pairs:
        term, equals, weight = pair.partition("=")
        if not equals or not term:
            raise ConfigError(f"--weight must be TERM=VALUE[:SCHEDULE], such as lfi=0.3:cosine, got {pair!r}.")
        weights[term] = weight
    return weights


def _indices(text: str) -> list[int]:
    if text == "auto":
        return []
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"--taps must be auto, or indices such as 1,3,5, got {text!r}.") from None


def is_first_process() -> bool:
    """Whether this is the one of a launcher's processes that speaks; without a launcher it is."""
    return os.environ.get("RANK", "0") == "0"

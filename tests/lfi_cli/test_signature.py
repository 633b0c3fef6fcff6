"""Parameters of typer made of declarations, and how its help shows them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest

from lfi_cli.main import Entry, entries
from lfi_cli.signature import older_names, plain_text, sections, signature, spelling
from lfi_pipeline.core.options import Alias, Option, declared


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One option of every kind."""

    run: Annotated[Path, Option("Where.", positional=True)]
    others: Annotated[tuple[Path, ...], Option("More.", positional=True, metavar="DIR")] = ()
    lr: Annotated[float, Option("Peak [of it].", panel="Optimiser", aliases=("learning_rate",))] = 5e-4
    steps: Annotated[int | None, Option("How many.")] = None
    scale: Annotated[
        tuple[float, float],
        Option("Crop.", metavar="MIN MAX", aliases=(Alias("least_area", float, lambda low: (low, 1.0)),)),
    ] = (0.5, 1.0)
    hold_out: Annotated[tuple[str, ...], Option("Left out.")] = ()
    taps: Annotated[tuple[int, ...], Option("Places.", separator=",", empty="auto")] = ()
    kwargs: Annotated[Mapping[str, Any], Option("More.")] = field(default_factory=dict)
    probes: Annotated[bool, Option("Whether.")] = True
    small: Annotated[bool, Option("A trial.")] = False
    source: Annotated[str, Option("From.", choices=("run", "scratch"), flags=("from",))] = "run"
    kept: Annotated[int, Option("Not for people.", cli=False)] = 0


OPTIONS = declared(Config).values()


def said(parameter: inspect.Parameter) -> tuple[Any, Any]:
    """What typer reads a parameter as, and what it is told of it."""
    kind, told = get_args(parameter.annotation)
    return kind, told


@pytest.mark.parametrize(
    ("name", "kind", "decls"),
    [
        ("run", Path, ()),
        ("others", list[Path] | None, ()),
        ("lr", float | None, ("--lr",)),
        ("learning_rate", float | None, ("--learning-rate",)),
        ("steps", str | None, ("--steps",)),  # `none` is a value of it
        ("scale", tuple[float, float] | None, ("--scale",)),
        ("least_area", float | None, ("--least-area",)),
        ("hold_out", list[str] | None, ("--hold-out",)),
        ("taps", str | None, ("--taps",)),
        ("kwargs", list[str] | None, ("--kwargs",)),
        ("probes", bool | None, ("--probes/--no-probes",)),
        ("small", bool | None, ("--small",)),
        ("no_small", bool, ("--no-small",)),
        ("source", str | None, ("--source", "--from")),
        ("config", Path | None, ("--config",)),
        ("as_json", bool, ("--json",)),
    ],
)
def test_an_option_is_a_parameter_of_its_type(name: str, kind: Any, decls: tuple[str, ...]) -> None:
    found, told = said(signature(OPTIONS, file=True).parameters[name])
    assert found == kind
    assert tuple(each for each in (told.default, *(told.param_decls or ())) if each is not ...) == decls


def test_only_what_must_be_given_has_no_default_and_older_names_are_hidden() -> None:
    found = signature(OPTIONS, file=False).parameters
    assert [name for name, each in found.items() if each.default is inspect.Parameter.empty] == ["run"]
    assert [name for name, each in found.items() if said(each)[1].hidden] == ["learning_rate", "least_area", "no_small"]
    assert "kept" not in found
    assert "config" not in found
    assert said(found["lr"])[1].rich_help_panel == "Optimiser"


def test_what_is_listed_as_text() -> None:
    found = sections(OPTIONS, file=True)
    assert list(found) == ["Arguments", "Options", "Optimiser"]
    assert found["Arguments"] == [("RUN", "Where."), ("[DIR...]", "More.")]
    assert found["Optimiser"] == [("--lr FLOAT", "Peak [of it]. [default: 0.0005]")]
    listed = dict(found["Options"])
    assert listed["--scale MIN MAX"] == "Crop. [default: 0.5, 1]"
    assert listed["--hold-out TEXT"] == "Left out. May be repeated."
    assert listed["--taps INT,..."] == "Places. [default: auto]"
    assert listed["--probes / --no-probes"] == "Whether. [default: on]"
    assert listed["--small"] == "A trial. [default: off]"
    assert listed["--source, --from run|scratch"] == "From. [default: run]"


def test_names_as_they_are_typed() -> None:
    found = spelling(OPTIONS)
    assert (found["run"], found["hold_out"]) == ("RUN", "--hold-out")
    assert "kept" not in found
    lr = declared(Config)["lr"]
    assert [(each.name, each.kind) for each in older_names(lr)] == [("learning_rate", float)]


def test_square_brackets_are_no_markup() -> None:
    from rich.text import Text

    assert Text.from_markup(plain_text("pip install 'lfi[ray]' [/]")).plain == "pip install 'lfi[ray]' [/]"


@pytest.mark.parametrize(("name", "entry"), list(entries()))
def test_help_of_80_columns_cuts_nothing(
    name: str, entry: Entry, lfi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not where it is piped, which is as wide."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = lfi(*name.split(), "--help").out
    assert "…" not in shown
    listed = [spelt for records in entry.load().sections().values() for spelt, _ in records]
    words = [word.strip("[].") for spelt in listed for word in spelt.replace(", ", " ").replace(" / ", " ").split()]
    assert [word for word in words if word not in shown] == []
    assert max(map(len, shown.splitlines())) <= 80


def test_a_switch_that_is_off_can_be_named_off(lfi: Callable[..., Any], tmp_path: Path) -> None:
    words = ("train", "--targets", tmp_path, "--dry-run", "--json")
    assert lfi(*words, "--no-pretrained").json["runs"][0]["settings"]["pretrained"] is False
    both = lfi(*words, "--no-pretrained", "--pretrained")
    assert both.code == 2
    assert "--no-pretrained" in both.err

"""Commands that are made of declarations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner, Result

from lfi_cli.generate import Command, command
from lfi_cli.output import Shown, say
from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.core.options import Alias, Option, build, check, flatten
from lfi_pipeline.core.settings_file import SettingsFile
from lfi_pipeline.training import sweep as sweeps
from lfi_pipeline.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One option of every kind."""

    runs: Annotated[tuple[Path, ...], Option("Where.", positional=True)] = ()
    lr: Annotated[float, Option("Peak.", gt=0, panel="Optimiser", aliases=("learning_rate",))] = 5e-4
    steps: Annotated[int | None, Option("How many.", ge=1)] = None
    scale: Annotated[
        tuple[float, float],
        Option("Crop.", metavar="MIN MAX", aliases=(Alias("least_area", float, lambda low: (low, 1.0)),)),
    ] = (0.5, 1.0)
    hold_out: Annotated[tuple[str, ...], Option("Left out.")] = ()
    taps: Annotated[tuple[int, ...], Option("Places.", separator=",", empty="auto")] = ()
    kwargs: Annotated[Mapping[str, Any], Option("More.")] = field(default_factory=dict)
    layers: Annotated[int | tuple[int, ...] | None, Option("Which.")] = None
    probes: Annotated[bool, Option("Whether.")] = True
    source: Annotated[str, Option("From.", choices=("run", "scratch"), flags=("from",))] = "run"
    hidden: Annotated[int, Option("Not for people.", cli=False)] = 0

    def __post_init__(self) -> None:
        check(self)


@command(Config, file=SettingsFile(Config))
def tried(config: Config) -> Shown:
    """Try it.

    Example: lfi tried
    """
    if config.steps == 13:
        raise ConfigError(
            "steps must not be 13. Take fewer `taps`, `probes=False` or `source='scratch'`.", argument="steps"
        )
    if config.steps == 14:
        raise DatasetError("The data at steps are not there.")
    return Shown(flatten(config), lambda console: say(console, f"lr {config.lr}"), code=3 if config.steps == 15 else 0)


def run(*words: object, of: Command = tried) -> Result:
    app = typer.Typer()
    of.register(app, "tried")
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def made(*words: object) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ((), {}),
        (("a", "b"), {"runs": ["a", "b"]}),
        (("--lr", "1e-3"), {"lr": 1e-3}),
        (("--learning-rate", 2), {"lr": 2.0}),
        (("--steps", 3), {"steps": 3}),
        (("--steps", "none"), {}),
        (("--scale", 0.1, 0.2), {"scale": [0.1, 0.2]}),
        (("--least-area", 0.25), {"scale": [0.25, 1.0]}),
        (("--hold-out", "a,b", "--hold-out", "c"), {"hold_out": ["a,b", "c"]}),
        (("--taps", "1,3"), {"taps": [1, 3]}),
        (("--taps", "1", "--taps", "auto"), {}),
        (("--kwargs", "depth=3", "--kwargs", "act=gelu"), {"kwargs": {"depth": 3, "act": "gelu"}}),
        (("--kwargs", "sizes=[1, 2]"), {"kwargs": {"sizes": [1, 2]}}),
        (("--layers", 4), {"layers": 4}),
        (("--layers", "2,5"), {"layers": [2, 5]}),
        (("--no-probes",), {"probes": False}),
        (("--from", "scratch"), {"source": "scratch"}),
    ],
)  # fmt: skip
def test_what_is_typed_reaches_the_config(words: tuple[object, ...], changed: dict[str, Any]) -> None:
    assert made(*words) == flatten(Config()) | changed


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--lr", 0), 1, "error: --lr must be positive and finite, got 0.0.\n"),
        (("--learning-rate", 0), 1, "error: --lr must be positive and finite, got 0.0.\n"),
        (("--steps", 13), 1, "error: --steps must not be 13. Take fewer --taps, --no-probes or --source scratch.\n"),
        (("--steps", 14), 1, "error: The data at steps are not there.\n"),
        (("--source", "elsewhere"), 1, "error: Unknown source 'elsewhere'. Choices: run, scratch.\n"),
        (("--kwargs", "depth"), 1, "error: --kwargs must be written KEY=VALUE, got 'depth'.\n"),
        (("--taps", "1,x"), 1, "error: --taps must be a list of whole numbers, got [1, 'x'].\n"),
        (("--steps", "many"), 2, "Invalid value for --steps: a whole number is wanted, got 'many'."),
        (("--hidden", 3), 2, "No such option"),
    ],
)
def test_errors_speak_of_options(words: tuple[object, ...], code: int, told: str) -> None:
    ended = run(*words)
    assert ended.exit_code == code
    assert ended.stdout == ""
    assert told in ended.stderr
    if code == 1:
        found = json.loads(run(*words, "--json").stdout)["error"]
        assert f"error: {found['message']}\n" == told


def test_a_result_may_end_with_another_code() -> None:
    ended = run("--steps", 15, "--json")
    assert ended.exit_code == 3
    assert json.loads(ended.stdout)["steps"] == 15
    assert run().stdout == "lr 0.0005\n"


def test_options_go_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("learning-rate = 0.1\ntaps = [1]\n[kwargs]\na = 1\nb = 2\n")
    found = made("--config", path, "--kwargs", "b=3", "--steps", 2)
    assert (found["lr"], found["taps"], found["kwargs"], found["steps"]) == (0.1, [1], {"a": 1, "b": 3}, 2)


def test_a_package_that_is_missing_is_told_with_the_extra_that_brings_it() -> None:
    @command(Config)
    def needs(config: Config) -> Shown:
        """Needs another package."""
        raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip.model")

    ended = run(of=needs)
    assert ended.exit_code == 1
    assert "pip install 'lfi-pipeline[teacher]'" in ended.stderr


def test_what_is_interrupted_says_how_to_go_on() -> None:
    @command(Config)
    def slow(config: Config) -> Shown:
        """Take long."""
        raise KeyboardInterrupt

    ended = run("--json", of=slow)
    assert ended.exit_code == 130
    assert "run the same command again" in ended.stderr
    assert json.loads(ended.stdout)["error"]["type"] == "KeyboardInterrupt"


def test_help_is_in_panels_with_defaults_and_without_older_names() -> None:
    shown = run("--help").stdout
    panels = shown.split("╭─ ")
    assert "Optimiser" in panels[-1]
    assert "--lr" in panels[-1]
    shown = " ".join(shown.replace("│", "").split())
    assert "--lr FLOAT" in shown
    assert "--scale MIN MAX" in shown
    assert "[default: 0.0005]" in shown
    assert "[default: auto]" in shown
    assert "--probes --no-probes" in shown
    assert "run|scratch" in shown
    assert "Example: lfi tried" in shown
    assert not any(name in shown for name in ("learning", "least", "hidden"))


def test_a_new_setting_is_one_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more field is an option with help, a key of TOML, of config.json and of sweeps, and an argument in Python."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class More(TrainConfig):
        drop_path: Annotated[float, Option("Share of blocks left out.", ge=0, lt=1, panel="Optimiser")] = 0.0

    More.__annotations__ = {"drop_path": Annotated[float, Option("Share of blocks left out.", ge=0, lt=1)]}

    @command(More, file=SettingsFile(More))
    def train(config: More) -> Shown:
        """Train."""
        return Shown(flatten(config))

    assert "--drop-path" in run("--help", of=train).stdout
    assert json.loads(run("--targets", "x", "--drop-path", 0.1, "--json", of=train).stdout)["drop_path"] == 0.1
    assert "--drop-path must be from 0 to below 1, got 2.0" in run("--targets", "x", "--drop-path", 2, of=train).stderr
    (tmp_path / "run.toml").write_text('targets = "x"\ndrop-path = 0.2\n')
    assert json.loads(run("--config", tmp_path / "run.toml", "--json", of=train).stdout)["drop_path"] == 0.2
    config = build(More, {"targets": "x", "drop_path": 0.3})
    assert config.drop_path == 0.3
    assert flatten(config)["drop_path"] == 0.3

    monkeypatch.setattr(sweeps, "TrainConfig", More)
    monkeypatch.setattr(sweeps, "RUN_FILE", SettingsFile(More))
    (tmp_path / "sweep.toml").write_text('out = "runs"\n[base]\ntargets = "x"\n[grid]\ndrop_path = [0.0, 0.5]\n')
    plan = sweeps.plan_sweep(sweeps.read_sweep(tmp_path / "sweep.toml"), tmp_path / "runs")
    assert [run.name for run in plan] == ["drop_path=0", "drop_path=0.5"]

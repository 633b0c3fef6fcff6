"""What every command promises: help with an example, a quick start, and usage errors that are no tracebacks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main

from lfi_cli.main import PANELS, app_for, main

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "demo",
    "datasets",
    "teachers",
    "make-scenes",
    "plan",
    "extract-teacher",
    "inspect",
    "pack",
    "verify",
    "train",
    "evaluate",
    "compare",
    "export",
    "report",
)
HEAVY = {"torch", "timm", "open_clip", "zarr", "tensorstore", "pyarrow", "matplotlib", "torchmetrics", "numpy"}


def test_help_lists_every_command(lfi: Callable[..., Any]) -> None:
    shown = lfi("--help")
    assert shown.code == 0
    assert "lfi demo" in shown.out
    for name in COMMANDS:
        assert f"\n│ {name} " in shown.out
    assert re.findall("╭─ ([^─]+) ─", shown.out) == ["Options", *PANELS]


def test_without_arguments_the_help_is_shown(lfi: Callable[..., Any]) -> None:
    shown = lfi()
    assert "make-scenes" in shown.out + shown.err


def test_only_the_command_that_is_asked_for_has_its_options() -> None:
    def options_of(*words: str) -> dict[str, int]:
        group = typer.main.get_command(app_for(words))
        assert isinstance(group, typer.core.TyperGroup)
        study = group.commands["study"]
        assert isinstance(study, typer.core.TyperGroup)
        return {name: len(each.params) for name, each in {**group.commands, **study.commands}.items()}

    assert set(options_of("--help").values()) == {0}
    assert [name for name, count in options_of("--version", "train", "plan").items() if count] == ["train"]
    assert [name for name, count in options_of("study", "make").items() if count] == ["make"]


def test_groups_list_their_commands(lfi: Callable[..., Any]) -> None:
    for group, names in (("study", ("make", "score")), ("bench", ("maps", "plot-kernel"))):
        shown = lfi(group, "--help")
        assert shown.code == 0
        for name in names:
            assert f"\n│ {name} " in shown.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_and_shows_an_example(lfi: Callable[..., Any], name: str) -> None:
    shown = lfi(name, "--help")
    assert shown.code == 0
    assert "--json" in shown.out
    assert f"Example: lfi {name}" in shown.out


@pytest.mark.parametrize(
    "words",
    [
        ("no-such-command",),
        ("export",),
        ("train", "--targets", "x", "--epochs", "many"),
        ("verify", "x", "--no-such-option"),
        ("report",),
    ],
)
def test_usage_errors_are_short(lfi: Callable[..., Any], words: tuple[str, ...]) -> None:
    ended = lfi(*words)
    assert ended.code == 2
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert ended.err.count("\n") < 8


def test_threads_that_wait_leave_their_core_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for own, then in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", own or "")
        if own is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        with pytest.raises(SystemExit):
            main(["--version"])
        assert os.environ["OMP_WAIT_POLICY"] == then


def test_help_imports_no_heavy_package() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lfi_cli", "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "cli", "kernels"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "make-scenes" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "lfi_cli" in imported
    assert not imported & HEAVY

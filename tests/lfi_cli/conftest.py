"""Run commands as a shell would, and check what every one of them promises."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lfi_cli.main import app_for
from lfi_pipeline.teachers import CocaTeacher

STUDENT = (
    *("--student", "vit_tiny_patch16_224", "--image-size", 64, "--patch-size", 16),
    *("--student-arg", "depth=3", "--student-arg", "embed_dim=32", "--student-arg", "num_heads=2"),
    *("--head", "linear", "--query-width", 16, "--query-heads", 2, "--batch-size", 8, "--epochs", 1, "--device", "cpu"),
)


# typer colours its help in continuous integration even where it is piped
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The whole of stdout as one JSON object."""
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content


Lfi = Callable[..., Ended]


@pytest.fixture
def lfi() -> Lfi:
    """`lfi("verify", path, "--json")`; an exception that is not an exit is a bug and is raised."""

    def run(*words: object) -> Ended:
        line = [str(word) for word in words]
        result = CliRunner().invoke(app_for(line), line, prog_name="lfi")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def fails(lfi: Lfi) -> Callable[..., str]:
    """Run a command that must fail, with and without --json; returns the message."""

    def run(kind: str, *words: object) -> str:
        plain = lfi(*words)
        assert plain.code == 1
        assert plain.out == ""
        assert "Traceback" not in plain.err
        assert plain.err.count("error:") == 1
        message = plain.err.partition("error:")[2].strip()

        machine = lfi(*words, "--json")
        assert machine.code == 1
        assert machine.json == {"error": {"type": kind, "message": message}}
        assert machine.err.count("error:") == 1
        return message

    return run


@pytest.fixture
def stand_in(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `scenes-coca` be the tiny random teacher."""
    monkeypatch.setattr(
        "lfi_pipeline.teachers.registry._embedded", lambda tag: (tiny_teacher.model, tiny_teacher.tokenizer)
    )


@pytest.fixture(scope="session")
def _one_trained(tiny_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "lfi-0"
    words = [str(word) for word in ("train", "--targets", tiny_targets, *STUDENT, "--out", run)]
    assert CliRunner().invoke(app_for(words), words).exit_code == 0
    return run


@pytest.fixture
def trained(_one_trained: Path, tmp_path: Path) -> Path:
    """A copy, free to write into, of a finished run of objective `lfi`."""
    return Path(shutil.copytree(_one_trained, tmp_path / "lfi-0"))

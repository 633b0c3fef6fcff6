"""How results and errors are shown."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from lfi_cli.generate import every_spelling
from lfi_cli.output import facts, hours_text, say, size_text, spoken, stderr, stdout, tree, whole_table
from lfi_cli.signature import spelling
from lfi_cli.train import train
from lfi_pipeline.core.errors import ConfigError, UnknownNameError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("message", "argument", "told"),
    [
        ("lr must be positive, got 0.", "lr", "--lr must be positive, got 0."),
        ("lr must be positive, got 0.", None, "lr must be positive, got 0."),
        ("The lr is too high. Lower `lr`.", None, "The lr is too high. Lower --lr."),
        ("Train with `hflip=0` or `pretrained=False`.", None, "Train with --hflip 0 or --no-pretrained."),
        ("Extract with `views=['full', 'hflip']`.", None, "Extract with --views full,hflip."),
        ("Or with `text='prompts'`; `onnx=True`.", None, "Or with --text prompts; --onnx."),
        ("Give `teacher=ViT-B-32:PATH`.", None, "Give --teacher ViT-B-32:PATH."),
        ("Run `lfi train`, not `nothing=3` or `hflips`.", None, "Run `lfi train`, not nothing=3 or `hflips`."),
    ],
)
def test_arguments_are_spoken_as_options(message: str, argument: str | None, told: str) -> None:
    own = spelling(train.options.values())
    assert spoken(ConfigError(message, argument=argument), own, every_spelling) == told
    unknown = UnknownNameError("student", "a", ["b"], argument="student")
    assert spoken(unknown, own, every_spelling).startswith("Unknown student 'a'")


def test_a_tree_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "report.html").write_text("")
    lines = tree(tmp_path, {"report.html": "the page", "runs/*": "the runs", "gone": "nothing"})
    assert lines == [f"{tmp_path}/", "├── report.html  the page", "└── runs/*       the runs"]
    assert tree(tmp_path / "runs" / "a", {"x": "nothing"}) == []


def test_texts_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A name in square brackets is no style, and one between colons no picture."""
    names = ("photo [edited].jpg", "[/x]", ":cat:")
    table = Table("image [1]", title="a [b]")
    for name in names:
        table.add_row(name)
    whole_table(Console(file=sys.stdout, width=9), table)
    stdout().print(table)
    stdout().print("note [c]")
    say(stderr(), *names)
    shown = capsys.readouterr()
    assert all(shown.out.count(text) == 2 for text in ("image [1]", "a [b]", *names))
    assert "note [c]" in shown.out
    assert shown.err.splitlines() == list(names)


def test_nothing_is_cut_however_narrow_the_terminal_is() -> None:
    console = Console(file=io.StringIO(), width=20)
    facts(console, "title", [("name", "x" * 90)])
    table = Table("a", "b")
    table.add_row("y" * 50, "z" * 50)
    whole_table(console, table)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert all(letter * count in shown for letter, count in (("x", 90), ("y", 50), ("z", 50)))


def test_lengths_and_sizes() -> None:
    assert [hours_text(hours) for hours in (2.5, 0.5, 0.001)] == ["2.5 hours", "30.0 minutes", "3.6 seconds"]
    assert [size_text(size) for size in (12, 13500, 2e15)] == ["12 B", "13.5 kB", "2,000.0 TB"]


def lfi(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(ROOT / part) for part in (".", "cli", "kernels"))
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lfi_cli", *words],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_terminal_that_knows_ascii_only_fails_nothing(tmp_path: Path) -> None:
    ended = lfi("datasets", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "coco ? COCO" in ended.stdout  # a dash
    helped = lfi("train", "--help", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert helped.returncode == 0, helped.stderr[-2000:]
    assert "--grad-accum-steps" in helped.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--help",), 0, "Stage one"),
        (("--version",), 0, "lfi 0."),
        (("train", "--help"), 0, "--grad-accum-steps"),
        (("extract-teacher", "--help"), 0, "--views"),
        (("train", "--targets", "x", "--epochs", "0"), 1, "--epochs must be 1 or more"),
        (("evaluate", "x", "--protocol", "grounding", "--gallery", "-1", "--targets", "y"), 1, "--gallery must be"),
        (("extract-teacher", "--dataset", "scenes", "--words", "0"), 1, "--words must be 1 or more"),
        (("bench", "maps", "--rounds", "0"), 1, "--rounds must be 1 or more"),
    ],
)
def test_help_and_errors_about_values_do_not_wait_for_torch(words: tuple[str, ...], code: int, says: str) -> None:
    ended = lfi(*words)
    assert ended.returncode == code
    assert says in ended.stdout + ended.stderr
    modules = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in ended.stderr.splitlines() if "|" in line}
    assert "lfi_cli" in modules
    assert not modules & {"torch", "timm", "open_clip", "torchvision"}

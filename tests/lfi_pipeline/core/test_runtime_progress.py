"""A bar in a terminal, a few lines elsewhere; and every long loop of the library goes through the one helper."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tqdm import tqdm

import lfi_pipeline
from lfi_pipeline.core import runtime as progress
from lfi_pipeline.core.runtime import ProgressLines, progress_bar, tell


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_a_log_has_a_line_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=1000, desc="run", unit="step") as bar:
        assert isinstance(bar, ProgressLines)
        for step in range(1000):
            clock.now += 0.1
            bar.set_postfix(loss=f"{step:.1f}", refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "run: 300/1000 steps (30%), 10 steps/s, 70 s left, loss 299.0"


def test_what_is_short_is_silent_and_what_was_done_before_is_no_speed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress_bar(range(5), desc="x")) == [0, 1, 2, 3, 4]
    bar = progress_bar(total=100, initial=90, unit="step")
    clock.now += 60
    bar.update(6)
    assert capsys.readouterr().err == "96/100 steps (96%), 0.1 steps/s, 40 s left\n"
    endless = progress_bar(iter(range(3)), unit="image")
    for _ in endless:
        clock.now += 31
    endless.set_postfix_str("slow")
    endless.set_description("more")
    clock.now += 31
    endless.update()
    assert capsys.readouterr().err.splitlines()[-1] == "more: 4 images, 0.0323 images/s, slow"


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(total=3, leave=False) as bar:
        assert isinstance(bar, tqdm)
    with progress_bar(total=3, disable=True) as bar:
        bar.update()


def test_lines_beside_it_are_written_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    tell("one", "two")
    assert capsys.readouterr().err == "one\ntwo\n"


def test_every_bar_of_the_library_is_this_one() -> None:
    root = Path(lfi_pipeline.__file__).parent
    own = [path for path in root.rglob("*.py") if "tqdm" in path.read_text(encoding="utf-8")]
    assert own == [root / "core" / "runtime.py"]

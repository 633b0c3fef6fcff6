"""The list of commands: what it says of each is what the command says of itself."""

from __future__ import annotations

import pytest

from lfi_cli.generate import Command
from lfi_cli.main import GROUPS, PANELS, Entry, entries


def test_the_headings_are_in_the_order_of_the_work() -> None:
    assert list(PANELS) == ["Start here", "Stage one", "Stage two", "Scores", "More"]
    assert [name for name, _ in entries()] == [name for names in PANELS.values() for name in names]


@pytest.mark.parametrize(("name", "entry"), list(entries()))
def test_the_line_of_a_command_is_the_first_of_its_help(name: str, entry: Entry) -> None:
    found = entry.load()
    assert isinstance(found, Command)
    assert found.help.split("\n\n")[0].replace("\n", " ") == entry.help
    assert f"lfi {name}" in found.help


def test_a_command_of_two_words_is_of_a_group_that_is_explained() -> None:
    assert {name.split()[0] for name, _ in entries() if " " in name} == set(GROUPS)

"""cli/README.md is written from the declarations."""

from __future__ import annotations

from lfi_cli.generate import README, readme
from lfi_cli.main import entries


def test_the_file_is_what_the_declarations_say() -> None:
    assert README.read_text(encoding="utf-8") == readme(), "run: python -m lfi_cli.generate"


def test_every_command_has_a_section_with_an_example() -> None:
    text = readme()
    sections = text.split("\n### lfi ")[1:]
    assert len(sections) == len(list(entries()))
    for section in sections:
        name, _, rest = section.partition("\n")
        assert f"\n    lfi {name}" in rest

"""Writes cli/README.md from the declarations: every command with its options. Run: python -m lfi_cli.readme"""

from __future__ import annotations

from pathlib import Path

from lfi_cli.commands import PANELS
from lfi_cli.generate import Command

README = Path(__file__).resolve().parents[1] / "README.md"
INTRODUCTION = """# The command line

Every command, with every option, as `lfi COMMAND --help` tells it. This file is written by `python -m lfi_cli.readme`
from the same declarations that the commands are made of; a test compares the two.

- `--json` prints one JSON object on stdout and everything else on stderr. An error is an object too:
  `{"error": {"type": ..., "message": ...}}`.
- The exit code is 0, 1 where something is wrong and the message says how to mend it, 2 where the command cannot be
  read, and 130 after Ctrl-C. What was finished is kept, and the same command goes on.
- `--config FILE`, where a command has it, reads its settings from a TOML file, by the names of the options; options go
  over it. A relative path in a file is relative to the file.
- An option of several values is repeated, or separated by commas, as its placeholder shows: `INT,...`.
- A switch that is off by default is switched off by `--no-NAME` too, for a file that switches it on.
- Names of earlier releases (`--learning-rate`, `--least-area`, `--aspect`, `--flip`, `--clip`, `--accumulate`,
  `--optimizer`, `--mix-probability`) are still read in this one: on the command line, in files and in the `config.json`
  of old runs.

A new option is one field of a config dataclass in the library (`lfi_pipeline/*/config.py`): its type, default, range
and help. It is then an option here, a key in TOML, an entry of `config.json`, an axis of a sweep and an argument in
Python.
"""


def readme() -> str:
    """Return what cli/README.md holds."""
    parts = [INTRODUCTION]
    for title, names in PANELS.items():
        parts += [f"## {title}\n", *(_section(name, entry.load()) for name, entry in names.items())]
    return "\n".join(parts)


def _section(name: str, command: Command) -> str:
    told = command.help.split("\n\n")
    lines = [f"### lfi {name}\n"]
    for paragraph in told:
        text = " ".join(paragraph.split())
        start, colon, example = text.partition(": ")
        shown = text.startswith(("Example: ", "On "))
        lines.append(f"{start}:\n\n    {example}\n" if shown and colon else f"{text}\n")
    lines.append("| option | what it does |\n|---|---|")
    for title, records in command.sections().items():
        if title not in ("Arguments", "Options"):
            lines.append(f"| **{_cell(title)}** | |")
        lines += [
            f"| `{_cell(spelt)}` | {_cell(text)} |" for spelt, text in records if spelt not in ("--json", "--help")
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")

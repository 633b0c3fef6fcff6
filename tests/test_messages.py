"""The library speaks of arguments, the command line of options: no text of `lfi_pipeline` names a `--flag`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAG = re.compile(r"(?<![\w-])--[a-z]")
OF_OTHERS = {
    "data/readers/tar_members.py": "tar --ignore-zeros",
    "data/readers/webdataset.py": "tar --sort=name",
    "teachers/scenes_coca/recipe.py": "--",  # a program of its own
    "core/options.py": "--no-",  # makes options
}
"""File -> what it may say: options of other programs."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_text_of_the_library_names_a_flag() -> None:
    folder = ROOT / "lfi_pipeline"
    found = []
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder).as_posix()
        for line, text in texts(path):
            if FLAG.search(text) and OF_OTHERS.get(place, "\0") not in text:
                found.append(f"{place}:{line}: {text[:100]!r}")
    assert not found, "\n".join(found)


def test_a_flag_would_be_found() -> None:
    assert FLAG.search("Choose another --out.")
    assert not FLAG.search("a -- b, x--y")

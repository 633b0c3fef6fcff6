"""The rules of the house, read off the source: who may import whom, and that nothing is ever unpickled.

Imports run one way, `lfi_cli -> lfi_pipeline -> lfi_kernels`; stage two knows nothing of the teachers.
Imports inside functions count as well: a rule that holds until a function is called does not hold.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "lfi_cli": ROOT / "cli" / "lfi_cli",
    "lfi_pipeline": ROOT / "lfi_pipeline",
    "lfi_kernels": ROOT / "kernels" / "lfi_kernels",
}
STAGE_TWO = (
    "core",
    "data",
    "targets",
    "students",
    "objectives",
    "training",
    "evaluation",
    "exporting",
    "report",
    "study",
)
PICKLERS = ("pickle", "cPickle", "_pickle", "shelve", "joblib", "dill", "cloudpickle", "numcodecs.pickles")
IMPORTERS = ("importlib.import_module", "__import__")
# A call that unpickles unless one keyword says otherwise.
LOADERS = {"numpy.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}


@dataclass(frozen=True)
class Source:
    """One file: its text, where messages say it is, and the dotted name it is imported by."""

    path: str
    module: str
    text: str
    is_package: bool = False


@dataclass(frozen=True)
class Import:
    """One name that a file imports, as an absolute dotted name."""

    name: str
    line: int
    in_function: bool


def sources() -> list[Source]:
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            relative = path.relative_to(ROOT).as_posix()
            found.append(Source(relative, module, path.read_text(encoding="utf-8"), is_package))
    return found


def imports_of(source: Source) -> Iterator[Import]:
    """Every import statement, relative ones resolved, and `import_module` of a literal.

    `from a import b` gives both `a` and `a.b`: which of them is the module cannot be read off the text.
    """

    tree = ast.parse(source.text)
    names = bound_names(tree)

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, in_function)
            elif isinstance(child, ast.ImportFrom):
                base = absolute(child.module, child.level, source)
                yield Import(base, child.lineno, in_function)
                for alias in child.names:
                    yield Import(f"{base}.{alias.name}", child.lineno, in_function)
            elif isinstance(child, ast.Call) and dotted(child.func, names) in IMPORTERS:
                literal = child.args[0] if child.args else None
                if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                    yield Import(literal.value, child.lineno, in_function)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, in_function or is_function)

    yield from visit(tree, False)


def absolute(name: str | None, level: int, source: Source) -> str:
    """`..x` as seen from a source, as a dotted name from the top."""
    if level == 0:
        return name or ""
    parts = source.module.split(".")
    base = parts[: len(parts) - level + source.is_package]
    return ".".join([*base, *([name] if name else [])])


def bound_names(tree: ast.AST) -> dict[str, str]:
    """What the names of a file's import statements stand for: `np` -> `numpy`."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """`a.b.c` of an expression, imported names written out, or an empty string where it is something else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of the packages or lies in one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


# --- the rules: each takes a source and says, file:line first, what breaks it -------------------------------


def breaks_one_way(source: Source) -> list[str]:
    broken = []
    for found in imports_of(source):
        where, root = f"{source.path}:{found.line}", found.name.partition(".")[0]
        if within(source.module, "lfi_pipeline") and root == "lfi_cli":
            broken.append(f"{where}: lfi_pipeline must not import lfi_cli, got {found.name}")
        if not within(source.module, "lfi_kernels"):
            continue
        if root == "triton":
            if not found.in_function and not source.module.rpartition(".")[2].startswith("triton_"):
                broken.append(
                    f"{where}: lfi_kernels must import triton inside a function, or in a file named "
                    f"triton_*.py that is itself imported inside one, got {found.name} at the top"
                )
        elif root not in ("lfi_kernels", "torch") and root not in sys.stdlib_module_names:
            broken.append(f"{where}: lfi_kernels must import the standard library and torch only, got {found.name}")
    return broken


def breaks_stage_two(source: Source) -> list[str]:
    if not within(source.module, *(f"lfi_pipeline.{name}" for name in STAGE_TWO)):
        return []
    return [
        f"{source.path}:{found.line}: stage two must import nothing of the teachers, got {found.name}"
        for found in imports_of(source)
        if within(found.name, "lfi_pipeline.teachers", "open_clip")
    ]


def breaks_no_pickle(source: Source) -> list[str]:
    broken = [
        f"{source.path}:{found.line}: nothing may be pickled, got an import of {found.name}"
        for found in imports_of(source)
        if within(found.name, *PICKLERS)
    ]
    tree = ast.parse(source.text)
    names = bound_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func, names)
        if called not in LOADERS:
            continue
        keyword, safe = LOADERS[called]
        given = {k.arg: k.value for k in node.keywords}.get(keyword)
        if not (isinstance(given, ast.Constant) and given.value is safe):
            broken.append(f"{source.path}:{node.lineno}: {called} must be called with {keyword}={safe}")
    return broken


# --- the house keeps them -----------------------------------------------------------------------------------

RULES = [breaks_one_way, breaks_stage_two, breaks_no_pickle]


@pytest.mark.parametrize("rule", RULES)
def test_the_source_keeps_the_rule(rule: Callable[[Source], list[str]]) -> None:
    broken = [line for source in sources() for line in rule(source)]
    assert not broken, "\n".join(["", *broken])


def test_all_three_packages_are_read() -> None:
    read = {source.module for source in sources()}
    assert set(PACKAGES) <= read
    assert {f"lfi_pipeline.{name}" for name in (*STAGE_TWO, "teachers")} <= read


def test_importing_stage_two_loads_no_teacher() -> None:
    probe = (
        "import sys\n"
        "import lfi_pipeline.training, lfi_pipeline.evaluation, lfi_pipeline.students, lfi_pipeline.targets\n"
        "print([m for m in sys.modules if m.startswith(('open_clip', 'lfi_pipeline.teachers'))])\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


# --- and the rules can be broken ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "text", "says"),
    [
        ("lfi_pipeline.data.x", "import lfi_cli", "must not import lfi_cli"),
        (
            "lfi_pipeline.data.x",
            "def f():\n    from lfi_cli.main import main",
            "f.py:2: lfi_pipeline must not",
        ),
        ("lfi_kernels.x", "import numpy as np", "standard library and torch only, got numpy"),
        ("lfi_kernels.x", "def f():\n    import lfi_pipeline.core.errors", "got lfi_pipeline.core.errors"),
        ("lfi_kernels.x", "import triton.language as tl", "import triton inside a function"),
        ("lfi_kernels.x", "if True:\n    from triton import jit", "f.py:2: "),
    ],
)
def test_one_way_can_be_broken(module: str, text: str, says: str) -> None:
    assert says in "\n".join(breaks_one_way(Source("f.py", module, text)))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("lfi_cli.x", "import lfi_pipeline, typer"),
        ("lfi_pipeline.x", "import lfi_kernels, timm"),
        ("lfi_kernels.x", "import math\nfrom torch import nn\nfrom . import y"),
        ("lfi_kernels.x", "def f():\n    import triton"),
        ("lfi_kernels.op.triton_forward", "import triton"),
    ],
)
def test_one_way_lets_the_rest_pass(module: str, text: str) -> None:
    assert breaks_one_way(Source("f.py", module, text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import lfi_pipeline.teachers.coca",
        "from lfi_pipeline import teachers",
        "from lfi_pipeline.teachers import coca",
        "from .. import teachers",
        "from ..teachers import coca",
        "from ..teachers.coca import Teacher as T",
        "import open_clip",
        "from open_clip.factory import create_model",
        "def f():\n    import open_clip",
        "async def f():\n    from ..teachers import coca",
        "class A:\n    def f(self):\n        if self:\n            from lfi_pipeline import teachers",
        "import importlib\nx = importlib.import_module('lfi_pipeline.teachers.coca')",
        "from importlib import import_module as load\nx = load('open_clip')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import open_clip",
    ],
)
def test_stage_two_can_be_broken(text: str) -> None:
    source = Source("lfi_pipeline/training/loop.py", "lfi_pipeline.training.loop", text)
    last = text.count("\n") + 1
    assert breaks_stage_two(source)[0].startswith(f"lfi_pipeline/training/loop.py:{last}: stage two must import")


def test_stage_two_is_read_in_a_package_file_too() -> None:
    inside = Source("__init__.py", "lfi_pipeline.students", "from ..teachers import coca", is_package=True)
    assert breaks_stage_two(inside)
    assert not breaks_stage_two(Source("__init__.py", "lfi_pipeline.students", "from .teachers import x", True))


def test_stage_two_lets_the_rest_pass() -> None:
    text = "import open_clip_like, torch\nfrom ..data import sample\nfrom lfi_pipeline.targets import reader"
    assert breaks_stage_two(Source("f.py", "lfi_pipeline.training.loop", text)) == []
    assert breaks_stage_two(Source("f.py", "lfi_pipeline.teachers.coca", "import open_clip")) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import joblib",
        "import dill as d",
        "import cloudpickle",
        "from numcodecs import pickles",
        "import numpy as np\nnp.load('a.npy')",
        "import numpy\nnumpy.load('a.npy', allow_pickle=True)",
        "import numpy as np\nnp.load('a.npy', None, False)",
        "import numpy as np\nnp.load('a.npy', **options)",
        "from numpy import load as read\nread('a.npy')",
        "import torch\ntorch.load('a.pt')",
        "import torch\ntorch.load('a.pt', weights_only=False)",
        "def f():\n    from torch import load\n    load('a.pt', weights_only=flag)",
    ],
)
def test_no_pickle_can_be_broken(text: str) -> None:
    assert breaks_no_pickle(Source("f.py", "lfi_pipeline.x", text))


@pytest.mark.parametrize(
    "text",
    [
        "import json\njson.load(file)",
        "import numpy as np\nnp.load('a.npy', allow_pickle=False)",
        "import torch\ntorch.load('a.pt', map_location='cpu', weights_only=True)",
        "from safetensors.torch import load\nload(data)",
    ],
)
def test_no_pickle_lets_the_rest_pass(text: str) -> None:
    assert breaks_no_pickle(Source("f.py", "lfi_pipeline.x", text)) == []

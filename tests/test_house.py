"""The shape of the house: files of a size one can read, no circles, tests beside what they test, words readers know."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from statistics import median

import pytest

from tests.conftest import SLOWEST
from tests.test_import_rules import PACKAGES, Source, imports_of, sources

ROOT = Path(__file__).resolve().parents[1]
MOST_FILES, MOST_LINES = 200, 400
TESTS_OF = {"lfi_pipeline": "lfi_pipeline", "lfi_cli": "lfi_cli", "lfi_kernels": "lfi_kernels"}


@pytest.fixture(scope="module")
def house() -> list[Source]:
    return sources()


def test_there_are_few_files_and_each_can_be_read(house: list[Source]) -> None:
    lines = {source.path: source.text.count("\n") for source in house}
    assert len(lines) <= MOST_FILES
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}
    assert 120 <= median(lines.values()) <= 250


def edges(house: list[Source]) -> dict[str, set[str]]:
    """Which module imports which, inside functions and for types alone as well."""
    modules = {source.module for source in house}
    found: dict[str, set[str]] = {}
    for source in house:
        names = {each.name for each in imports_of(source)}
        # `from a import b` gives a and a.b: where b is a module, a is only the way to it
        deeper = {name for name in names if any(other.startswith(f"{name}.") and other in modules for other in names)}
        found[source.module] = ((names - deeper) & modules) - {source.module}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan, SIAM Journal on Computing, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for following in graph.get(node, ()):
            if following not in order:
                visit(following)
                low[node] = min(low[node], low[following])
            elif following in stack:
                low[node] = min(low[node], order[following])
        if low[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def test_nothing_imports_itself_by_a_detour(house: list[Source]) -> None:
    assert circles(edges(house)) == []


def test_a_circle_is_found() -> None:
    """The rule can fail: also where an import is inside a function, and over three modules."""
    texts = {"a": "import p.b", "b": "def f():\n    from p import c", "c": "from p.a import x", "d": "import p.a"}
    planted = [Source(f"{name}.py", f"p.{name}", text) for name, text in texts.items()]
    assert circles(edges(planted)) == [["p.a", "p.b", "p.c"]]


def mirrored(source: Source) -> tuple[Path, str]:
    """Folder of the tests of a module, and what their names begin with."""
    package, *folders, module = source.module.split(".")
    return ROOT.joinpath("tests", package, *folders), f"test_{module}"


def test_every_module_has_its_tests_beside_it(house: list[Source]) -> None:
    """`a/b.py` is tested by `tests/a/test_b.py` or `test_b_*.py`, in the interpreter's folder for kernels."""
    missing = []
    for source in house:
        if source.is_package or source.module.count(".") == 0 or source.text.count("\n") < 10:
            continue
        folder, stem = mirrored(source)
        names = {path.stem for path in folder.rglob("test_*.py")}
        if not any(name == stem or name.startswith(f"{stem}_") for name in names):
            missing.append(source.path)
    assert missing == []


def test_every_test_belongs_to_a_module(house: list[Source]) -> None:
    modules = [source.module for source in house]
    stray = []
    for package in PACKAGES:
        for path in sorted((ROOT / "tests" / package).rglob("test_*.py")):
            inside = ".".join(path.relative_to(ROOT / "tests").parent.parts)
            parts = path.stem.removeprefix("test_").split("_")
            names = {"_".join(parts[:n]) for n in range(1, len(parts) + 1)}
            # tests under the interpreter lie in a folder of their own, and may be of any module of the kernels
            mine = [f"{inside}.{name}" in modules for name in names]
            if inside.endswith(".interpreted"):
                mine = [module.endswith(f".{name}") for name in names for module in modules]
            if not any(mine) and path.stem not in ("test_package", "test___main__"):
                stray.append(str(path.relative_to(ROOT)))
    assert stray == []


def test_nothing_cites_what_readers_do_not_have(house: list[Source]) -> None:
    cited = re.compile(r"\bDESIGN\b")
    assert [source.path for source in house if cited.search(source.text)] == []


@pytest.mark.parametrize("package", sorted(source.module for source in sources() if source.is_package))
def test_every_name_of_a_package_can_be_had(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None


FOLDERS = ("lfi_pipeline", "cli", "kernels", "data_manifests")


def test_documents_name_files_that_exist() -> None:
    """A file that is merged or renamed is found again by who reads: in every README."""
    documents = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
    assert len(documents) > len(FOLDERS)
    stale = []
    for path in documents:
        text, folder = path.read_text(encoding="utf-8"), path.parent
        below = [f"/{each.relative_to(folder).as_posix()}" for each in folder.rglob("*.py")]
        for name in re.findall(r"`([\w./]*\w\.py)`", text):
            exists = (folder / name).exists() or (ROOT / "lfi_pipeline" / name).exists()
            if name != "ROOM/config.py" and not exists and not any(each.endswith(f"/{name}") for each in below):
                stale.append((path.relative_to(ROOT).as_posix(), name))
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not link.startswith("http") and not (folder / link).exists():
                stale.append((path.relative_to(ROOT).as_posix(), link))
    assert stale == []


def test_the_slowest_tests_are_files_that_there_are() -> None:
    there = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(SLOWEST) <= there

"""Which runs a person means: directories of runs, directories that hold runs, and patterns that no shell expanded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lfi_pipeline.errors import RunError
from lfi_pipeline.report.runs import TRAINED


def find_runs(given: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the runs of `given`, each once, and notes on directories that were passed over.

    A directory that is no run stands for the runs directly below it; files beside runs, which `runs/*` also names, are
    passed over.

    Raises:
        RunError: something that is not there, or no run at all.
    """
    found: dict[Path, None] = {}
    notes: list[str] = []
    for path in [match for one in given for match in _expanded(one)]:
        if not path.is_dir():
            continue
        inside = [path] if _is_run(path) else sorted(child for child in path.iterdir() if _is_run(child))
        if not inside:
            notes.append(f"{path} was passed over: neither it nor a directory directly below it is a run.")
        found |= dict.fromkeys(inside)
    if not found:
        raise RunError(
            f"Give directories of training runs, or a directory that holds some: {', '.join(map(str, given))} must "
            f"have {' and '.join(TRAINED)}. `lfi train --out RUN` makes one."
        )
    return list(found), notes


def _expanded(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not matches:
        raise RunError(f"{path} must be a training run, or a directory that holds some, and is not there.")
    return matches


def _is_run(path: Path) -> bool:
    return all((path / name).is_file() for name in TRAINED)

"""The notebook runs as it stands, in small, in an interpreter of its own; it is stored without outputs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[3] / "lfi_pipeline" / "notebooks" / "quickstart.ipynb"
SIZES = re.compile(r"^TRAIN, VAL, EPOCHS = .*$", re.MULTILINE)


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_every_cell_runs(tmp_path: Path) -> None:
    script = "\n".join(code_cells())
    small, found = SIZES.subn("TRAIN, VAL, EPOCHS = 96, 24, 1", script)
    assert found == 1
    ended = subprocess.run([sys.executable, "-c", small], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in (tmp_path / "lfi-quickstart").iterdir()) == [
        "exported", "run", "scenes", "shards", "shards-val",
    ]  # fmt: skip

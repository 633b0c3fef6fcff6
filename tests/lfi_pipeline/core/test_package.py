"""Names that are imported when they are asked for, and packages of extras: what is missing is named."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lfi_pipeline.core import EXTRAS, extras, lazy_exports
from lfi_pipeline.core.errors import MissingExtraError

PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


def test_a_name_is_imported_when_it_is_asked_for() -> None:
    get = lazy_exports("lfi_pipeline.core", {"errors": ["ConfigError"]})
    assert get("ConfigError").__module__ == "lfi_pipeline.core.errors"
    with pytest.raises(AttributeError, match=r"'lfi_pipeline.core' has no attribute 'Nothing'"):
        get("Nothing")


def test_the_extra_of_a_missing_package_is_named() -> None:
    with (
        pytest.raises(MissingExtraError, match=r"package open_clip\.x.*pip install 'lfi-pipeline\[teacher\]'"),
        extras(),
    ):
        raise ModuleNotFoundError("No module named 'open_clip.x'", name="open_clip.x")
    with pytest.raises(ModuleNotFoundError, match="another"), extras():
        raise ModuleNotFoundError("No module named 'another'", name="another")


def test_every_extra_that_is_named_exists() -> None:
    declared = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(declared)


LIGHT = """
import sys
for package in {packages!r}:
    sys.modules[package] = None  # as if it were not installed
import torch, lfi_pipeline as lfi
from pathlib import Path
torch.set_num_threads(1)
targets = lfi.TargetDataset({targets!r}, image_size=64)
distiller = lfi.Distiller("resnet10t", targets, query_width=16, query_heads=2)
distiller(next(iter(targets.loader(8)))).backward()
lfi.show(targets[0])
lfi.train({targets!r}, student="resnet10t", image_size=64, epochs=1, batch_size=8, query_width=16, query_heads=2,
          device="cpu", out="run")
lfi.export("run", "exported")
lfi.load("exported")
try:
    lfi.extract("coco", data_root=".", out="shards")
except lfi.LFIError as error:
    print(error)
"""


def test_stage_two_needs_no_extra(tiny_targets: Path, tmp_path: Path) -> None:
    """The light install trains, exports and loads; stage one says which extra it lacks."""
    packages = sorted(set(EXTRAS) - {"transformers"})  # torchmetrics imports it where its metadata are found
    code = LIGHT.format(packages=packages, targets=str(tiny_targets))
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "pip install 'lfi-pipeline[teacher]'" in ended.stdout

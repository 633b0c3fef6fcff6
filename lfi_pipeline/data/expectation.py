"""The one form of «this is not laid out as it must be»: what must be there, what was found, how to obtain it."""

from __future__ import annotations

from pathlib import Path

from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.trees import found_in
from lfi_pipeline.errors import DatasetError


def misfit(manifest: Manifest, folder: Path, required: str, *, remedy: str = "") -> DatasetError:
    """Return the error that shows both sides; `required` ends the sentence «Data root R must hold ...»."""
    return DatasetError(
        f"Data root {folder} must hold {required} (layout {manifest.layout} of {manifest.name}); "
        f"found there: {found_in(folder)}. {remedy or f'To obtain it: {manifest.obtain}'}."
    )


def require_directory(manifest: Manifest, root: Path) -> None:
    """Raise a `DatasetError` unless `root` is a directory."""
    if not root.is_dir():
        raise DatasetError(f"Data root {root} must be a directory. To obtain {manifest.name}: {manifest.obtain}.")

"""Load a run and the split that it is scored on."""

from __future__ import annotations

from pathlib import Path

from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.evaluation.config import EvaluationConfig
from lfi_pipeline.training.loading import LoadedRun, load_run


def load(run: Path, common: EvaluationConfig) -> LoadedRun:
    """Load a run as `common` says. Raises as `training.loading.load_run`."""
    return load_run(run, device=common.device, weights=common.weights, data_root=common.data_root)


def validation_split(loaded: LoadedRun) -> Dataset:
    """Return the split that the run was validated on.

    Raises:
        DatasetError: it is not there.
    """
    return read_dataset(loaded.store.spec.dataset.name, loaded.store.source_root, loaded.config.val_split)

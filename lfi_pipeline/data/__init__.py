"""Data sets: manifest -> samples, images read as RGB, and augmentation replayed on maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.data.dataset import Dataset, Instance, Sample, SampleTable
    from lfi_pipeline.data.manifest import Manifest, load_manifest, manifest_names
    from lfi_pipeline.data.readers.registry import describe, expected_tree, read_dataset, summarize
    from lfi_pipeline.data.readers.sniff import Layout, sniff_layout

__all__ = [
    "Dataset",
    "Instance",
    "Layout",
    "Manifest",
    "Sample",
    "SampleTable",
    "describe",
    "expected_tree",
    "load_manifest",
    "manifest_names",
    "read_dataset",
    "sniff_layout",
    "summarize",
]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(
        __name__,
        {
            "dataset": ["Dataset", "Instance", "Sample", "SampleTable"],
            "manifest": ["Manifest", "load_manifest", "manifest_names"],
            "readers.registry": ["read_dataset", "describe", "expected_tree", "summarize"],
            "readers.sniff": ["Layout", "sniff_layout"],
        },
    )

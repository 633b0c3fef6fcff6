"""Benchmarks: each checks that what it times is right, then measures, and may append its rows to one CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.benchmarks.outcome import COLUMNS, Asked, Environment, Measurement, Outcome, append_csv

__all__ = ["COLUMNS", "Asked", "Environment", "Measurement", "Outcome", "append_csv"]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(
        __name__, {"outcome": ["COLUMNS", "Asked", "Environment", "Measurement", "Outcome", "append_csv"]}
    )

"""Benchmarks: each checks that what it times is right, then measures, and may append its rows to one CSV."""

from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome
from lfi_pipeline.benchmarks.record import COLUMNS, Environment, append_csv

__all__ = ["COLUMNS", "Asked", "Environment", "Measurement", "Outcome", "append_csv"]

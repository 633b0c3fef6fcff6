"""Reports: compare training runs in one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.report.html import write_map_gallery, write_report
    from lfi_pipeline.report.runs import Run, load_run

__all__ = ["Run", "load_run", "write_map_gallery", "write_report"]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(__name__, {"html": ["write_map_gallery", "write_report"], "runs": ["Run", "load_run"]})

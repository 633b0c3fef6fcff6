"""Reports: compare training runs in one self-contained HTML page."""

from lfi_pipeline.report.html import write_report
from lfi_pipeline.report.runs import Run, load_run

__all__ = ["Run", "load_run", "write_report"]

"""lfi report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lfi_cli.output import JsonFlag, Result, command, finish


@command
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories, or directories that hold runs; those that differ in seed are one line."),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    as_json: JsonFlag = False,
) -> Result:
    """Write one self-contained HTML page: scores, learning curves and a gallery of maps.

    Example: lfi report runs/ --out report.html
    """
    from lfi_pipeline.report import write_report
    from lfi_pipeline.report.runs import find_runs

    found, notes = find_runs(runs)
    path = write_report(found, out, title=title)

    def render(console: Console) -> None:
        for note in notes:
            console.print(f"Note: {note}", markup=False, soft_wrap=True)
        console.print(f"Report: {path.resolve()}", markup=False, soft_wrap=True)

    return finish({"report": str(path), "notes": notes}, as_json, render)

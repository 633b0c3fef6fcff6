"""lfi report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lfi_cli.output import JsonFlag, Result, command, finish


@command
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; runs that differ only in seed become one line.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    as_json: JsonFlag = False,
) -> Result:
    """Write one self-contained HTML page: scores, learning curves and a gallery of maps.

    Example: lfi report runs/none-0 runs/lfi-0 --out report.html
    """
    from lfi_pipeline.report import write_report

    path = write_report(runs, out, title=title)
    return finish(
        {"report": str(path)},
        as_json,
        lambda console: console.print(f"Report: {path.resolve()}", markup=False, soft_wrap=True),
    )

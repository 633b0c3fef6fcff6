"""lfi compare"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from lfi_cli.output import JsonFlag, Result, command, finish

if TYPE_CHECKING:
    from lfi_pipeline.report.compare import Comparison
    from lfi_pipeline.report.comparison_text import TextTable

_LEAST_WIDTH = 100


@command
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories, or directories that hold runs; seeds are averaged.")
    ],
    control: Annotated[
        str | None,
        typer.Option(help="Label of the runs to compare with. Default: objective none, same student and data."),
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="Only this protocol's results; repeat for several. Default: all there are.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this Markdown file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one line a group and measure to this CSV file.")] = None,
    as_json: JsonFlag = False,
) -> Result:
    """Compare objectives in every protocol that lfi evaluate has scored: intervals over seeds, differences, cost.

    Example: lfi compare runs/ --markdown results.md
    """
    from lfi_pipeline.core.io import write_output
    from lfi_pipeline.report.compare import compare as compare_runs
    from lfi_pipeline.report.comparison_text import comparison_csv, comparison_markdown, tidy
    from lfi_pipeline.report.runs import find_runs

    found, notes = find_runs(runs)
    comparison = compare_runs(found, control=control, protocols=protocol or ())
    written = [(path, text) for path, text in ((markdown, comparison_markdown), (csv, comparison_csv)) if path]
    for path, text in written:
        write_output(path, text(comparison), make_folder=True)
    result: Result = {
        "runs": [str(run) for run in found],
        "results": tidy(comparison),
        "costs": [asdict(cost) for cost in comparison.costs],
        "tests": comparison.tests,
        "notes": [*notes, *comparison.notes],
        "missing": [asdict(missing) for missing in comparison.missing],
        "written": [str(path) for path, _ in written],
    }
    return finish(result, as_json, lambda console: _show(console, comparison, result))


def _show(console: Console, comparison: Comparison, result: Result) -> None:
    from lfi_pipeline.report.comparison_text import block_tables, cost_table, legend, settings_text

    for block in comparison.blocks:
        console.print(settings_text(block), style="dim", markup=False)
        for table in block_tables(block, max(console.width, _LEAST_WIDTH)):
            _draw(console, table, lines=True)
    _draw(console, cost_table(comparison.costs))
    if comparison.blocks:
        for line in legend(comparison):
            console.print(line, markup=False, highlight=False)
    for note in result["notes"]:
        console.print(f"Note: {note}", markup=False, highlight=False)
    for missing in comparison.missing:
        console.print(f"Missing: {missing.what} This makes it:", markup=False, highlight=False)
        console.print(f"  {missing.command}", markup=False, highlight=False, soft_wrap=True)
    for path in result["written"]:
        console.print(f"Written: {path}", markup=False, soft_wrap=True)


def _draw(console: Console, table: TextTable, lines: bool = False) -> None:
    from lfi_pipeline.report.comparison_text import column_width

    drawn = Table(title=table.title, title_justify="left", show_lines=lines)
    for place, heading in enumerate(table.headings):
        width = column_width(heading, [row[place] for row in table.rows])
        drawn.add_column(heading, justify="right" if place else "left", width=width)
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)

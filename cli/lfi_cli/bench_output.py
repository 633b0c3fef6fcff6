"""How every benchmark shows its outcome: tables, the limits that were asked for, and rows in a CSV."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lfi_cli.output import Result, finish

if TYPE_CHECKING:
    from lfi_pipeline.benchmarks import Outcome

CsvOption = Annotated[
    Path | None, typer.Option("--csv", help="Append one row a measurement to this file (made where absent).")
]
QuickFlag = Annotated[bool, typer.Option("--quick", help="Tiny sizes: shows that it runs, measures nothing.")]


def show_outcome(outcome: Outcome, csv: Path | None, as_json: bool, device: str = "cpu") -> Result:
    """Append the rows, and print the outcome as a table or as JSON."""
    from dataclasses import asdict

    from lfi_pipeline.benchmarks import Environment, append_csv
    from lfi_pipeline.core.device import resolve_device

    environment = Environment.here(str(resolve_device(device)), outcome.threads)
    if csv is not None:
        append_csv(csv, environment, outcome)
    result: Result = outcome.to_plain() | {"environment": asdict(environment)}

    def render(console: Console) -> None:
        for topic, head, rows in outcome.tables():
            folded = ["\n".join(textwrap.wrap(text, 14)) for text in head]
            title = f"lfi bench {outcome.benchmark}" + f": {topic}" * bool(topic)
            table = Table(*folded, title=title, title_style="italic", box=SIMPLE_HEAD)
            for column in table.columns:
                column.justify = "left" if column.header in ("case", "shape") else "right"
            for row in rows:
                table.add_row(*row)
            wide = console.options.update(max_width=1000)  # a cell is never cut or wrapped
            Console(width=max(console.width, console.measure(table, options=wide).maximum)).print(table)
        console.print(f"checked first: {outcome.checked}", markup=False, soft_wrap=True)
        for each in outcome.asked:
            verdict = "holds" if each.met else "FAILS"
            console.print(f"{verdict}: {each.what} {each.value:.4g} (asked {each.limit})", markup=False, soft_wrap=True)
        for note in outcome.notes:
            console.print(f"note: {note}", markup=False, soft_wrap=True)

    return finish(result, as_json, render)

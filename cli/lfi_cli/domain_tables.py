"""How the scores of left-out domains are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from lfi_pipeline.report.views import DomainTable


def show_domain_tables(console: Console, tables: Sequence[DomainTable]) -> None:
    """Print each table, and what the reader should know of it."""
    from lfi_pipeline.report.text import DOMAIN_LEGEND, domain_cells

    for table in tables:
        headings, rows = domain_cells(table)
        shown = Table(*headings, title=table.title, title_justify="left")
        for row in rows:
            shown.add_row(*("\n".join(cell) for cell in row))
        console.print(shown)
        console.print(DOMAIN_LEGEND, style="dim", soft_wrap=True)
        for note in table.notes:
            console.print(note, markup=False, style="dim", soft_wrap=True)

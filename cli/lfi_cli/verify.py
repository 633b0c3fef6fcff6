"""lfi verify"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lfi_cli.output import JsonFlag, Result, command, finish


@command
def verify(
    targets: Annotated[Path, typer.Argument(help="A cache made by lfi extract-teacher.")],
    as_json: JsonFlag = False,
) -> Result:
    """Check every byte of a cache against its recorded checksums; exit with 1 on any fault.

    Example: lfi verify shards/
    """
    from lfi_pipeline.targets import verify as find_faults

    faults = find_faults(targets)
    result: Result = {"ok": not faults, "faults": [asdict(fault) for fault in faults]}

    def render(console: Console) -> None:
        verdict = "every checksum holds" if not faults else f"{len(faults)} fault(s)"
        console.print(f"{targets}: {verdict}", markup=False, soft_wrap=True)
        for fault in faults:
            console.print(f"  {fault.file}: {fault.message}", markup=False, soft_wrap=True)

    finish(result, as_json, render)
    if faults:
        raise typer.Exit(1)
    return result

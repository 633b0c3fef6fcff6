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
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Read the images too and compare them with the index.")
    ] = True,
    data_root: Annotated[Path | None, typer.Option(help="Where the images lie, if they moved.")] = None,
    as_json: JsonFlag = False,
) -> Result:
    """Check every byte of a cache and its images against their recorded checksums; exit with 1 on any fault.

    Example: lfi verify shards/
    """
    from lfi_pipeline.targets import verify as find_faults

    faults = find_faults(targets, images=images, data_root=data_root, progress=True)
    result: Result = {"ok": not faults, "faults": [asdict(fault) for fault in faults]}

    def render(console: Console) -> None:
        verdict = "every checksum holds" if not faults else f"{len(faults)} fault(s)"
        console.print(f"{targets}: {verdict}", markup=False, soft_wrap=True)
        for fault in faults:
            where = [f"shard {fault.shard}"] if fault.shard is not None else []
            where += [f"sample {fault.sample}"] if fault.sample is not None else []
            place = f" ({', '.join(where)})" if where else ""
            console.print(f"  {fault.file}{place}: {fault.message}", markup=False, soft_wrap=True)

    finish(result, as_json, render)
    if faults:
        raise typer.Exit(1)
    return result

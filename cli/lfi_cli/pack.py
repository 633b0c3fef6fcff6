"""lfi pack"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lfi_cli.output import JsonFlag, Result, command, facts, finish


@command
def pack(
    source: Annotated[Path, typer.Argument(help="A complete cache.")],
    out: Annotated[Path, typer.Argument(help="Directory of the new cache; an interrupted one is finished.")],
    layout: Annotated[
        str, typer.Option(help="webdataset (tar shards that hold the images too) or zarr (arrays; images stay).")
    ] = "webdataset",
    data_root: Annotated[Path | None, typer.Option(help="Where the images lie, if they moved.")] = None,
    as_json: JsonFlag = False,
) -> Result:
    """Write a cache again in the other layout: the same targets, every read checked.

    Example: lfi pack shards/ tars/ --layout webdataset
    """
    from lfi_pipeline.targets import TargetStore
    from lfi_pipeline.targets.pack import pack as write

    began = time.monotonic()
    packed = write(source, out, layout=layout, data_root=data_root, progress=True)
    result: Result = {
        **asdict(packed.summary),
        "out": str(out),
        "layout": layout,
        "fingerprint": TargetStore.open(out).spec.fingerprint,
        "data_root": str(packed.data_root),
        "images_missing": packed.images_missing,
        "seconds": time.monotonic() - began,
    }

    def render(console: Console) -> None:
        facts(
            console,
            str(out),
            [
                ("layout", layout),
                ("samples", f"{packed.summary.samples}, {packed.summary.quarantined} quarantined"),
                ("bytes a sample", f"{packed.summary.bytes_per_sample:,.0f}"),
                ("images", str(packed.data_root)),
                ("fingerprint", result["fingerprint"]),
            ],
        )
        if packed.images_missing:
            console.print(
                f"{packed.images_missing} image(s) are not below {packed.data_root}: they stay in {source}. Give "
                "--data-root where they lie when you use the new cache.",
                markup=False,
                soft_wrap=True,
            )

    return finish(result, as_json, render)

"""lfi make-scenes"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lfi_cli.output import JsonFlag, Result, command, facts, finish, names


@command
def make_scenes(
    out: Annotated[
        Path, typer.Option(help="Directory to write; a rerun with the same options finishes the work.")
    ] = Path("data/scenes"),
    train: Annotated[int, typer.Option(help="Scenes in the train split.")] = 4000,
    val: Annotated[int, typer.Option(help="Scenes in the val split.")] = 800,
    domains: Annotated[
        str,
        typer.Option(help="Domains of both splits, comma-separated, out of colour, outline, grey, photo."),
    ] = "colour,outline,grey",
    held_out: Annotated[
        str, typer.Option(help="Domains of the val split only, for cross-domain scores; may be empty.")
    ] = "photo",
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    object_scale: Annotated[float, typer.Option(help="Size of the objects, 0.3 to 1.35; smaller is harder.")] = 1.2,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0,
    as_json: JsonFlag = False,
) -> Result:
    """Render the embedded data set: captioned emoji scenes with exact masks, in COCO's layout.

    Pictures are drawn from the OpenMoji font (all emojis designed by OpenMoji, CC BY-SA 4.0).

    Example: lfi make-scenes --out data/scenes --train 2000 --val 400
    """
    from lfi_pipeline.data.scenes import ScenesConfig, write_scenes

    config = ScenesConfig(
        train=train,
        val=val,
        domains=names(domains),
        held_out=names(held_out),
        size=size,
        object_scale=object_scale,
        seed=seed,
    )
    write_scenes(out, config)
    result: Result = {"out": str(out)} | asdict(config)
    rows = [
        ("train", train),
        ("val", val),
        ("domains", domains),
        ("held out", held_out or "none"),
        ("in", out),
    ]
    return finish(result, as_json, lambda console: facts(console, "Scenes", rows))

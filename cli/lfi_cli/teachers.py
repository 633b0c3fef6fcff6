"""lfi teachers"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lfi_cli.output import JsonFlag, Result, command, facts, finish


@command
def teachers(
    name: Annotated[str, typer.Argument(help="One teacher; empty lists all.")] = "",
    family: Annotated[str, typer.Option(help="coca (reads captions) or dual (compares words with patches).")] = "",
    as_json: JsonFlag = False,
) -> Result:
    """List the teachers: image size, grid of a map, kinds of map (the default first), weights. Nothing is loaded.

    Example: lfi teachers coca_ViT-B-32
    """
    from lfi_pipeline.teachers.catalog import describe, parameters, teacher_names

    if name:
        result: Result = asdict(describe(name)) | {"parameters": parameters(name)}
        return finish(result, as_json, lambda console: _sheet(console, result))
    listed = [describe(each) for each in teacher_names(family)]

    def render(console: Console) -> None:
        table = Table(box=None, pad_edge=False)
        for column in ("name", "family", "pixels", "grid", "kinds of map", "weights"):
            table.add_column(column, no_wrap=column == "name")
        for each in listed:
            sizes = _by(each.image_size), _by(each.grid)
            table.add_row(each.name, each.family, *sizes, _first(each.kinds), str(len(each.tags)))
        console.print(table)
        console.print(
            "Every kind and tag: lfi teachers NAME. CoCas write captions too. A checkpoint of your own: --teacher "
            "NAME:PATH, hf-hub:ORG/REPO or local-dir:PATH",
            markup=False,
        )

    return finish({"teachers": [asdict(each) for each in listed]}, as_json, render)


def _first(kinds: tuple[str, ...]) -> str:
    return f"{kinds[0]} (of {len(kinds)})"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _sheet(console: Console, sheet: Result) -> None:
    count = sheet["parameters"]
    facts(
        console,
        sheet["name"],
        [
            ("family", sheet["family"]),
            ("image", f"{_by(sheet['image_size'])} pixels, maps of {_by(sheet['grid'])}"),
            ("parameters", "with its text tower on the hub" if count is None else f"{count:,}"),
            ("kinds of map", f"{', '.join(sheet['kinds'])} (the first is the default)"),
            ("writes captions", "yes" if sheet["generates"] else "no"),
            ("weights", ", ".join(sheet["tags"]) or "none listed: give NAME:PATH"),
            *(("needs", f"the tokenizer of {each} from the hub, and transformers") for each in sheet["repositories"]),
        ],
    )

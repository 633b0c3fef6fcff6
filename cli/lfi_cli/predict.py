"""lfi predict"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lfi_cli.output import JsonFlag, Result, command, finish, names


@command
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, or directories of them.")],
    model: Annotated[Path, typer.Option(help="A directory made by lfi export.")],
    words: Annotated[str, typer.Option(help="Names to ask for, comma-separated; the classes by default.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Answers an image, the best ones; of --words all.")] = 5,
    save: Annotated[
        Path | None, typer.Option(help="Directory for pictures of the answers with their maps, and a page of them all.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: JsonFlag = False,
) -> Result:
    """Say what is in pictures, and where the student looked for it.

    Example: lfi predict photos/ --model exported/ --save answers/
    """
    from lfi_pipeline.core.device import resolve_device
    from lfi_pipeline.exporting import load
    from lfi_pipeline.exporting.predict import INDEX, find_images, predict_images, save_predictions

    asked = names(words) or None
    paths = find_images(images)
    predictions = predict_images(
        load(model, device=resolve_device(device)), paths, asked, top=top, skip_unreadable=len(paths) > 1
    )
    found = list(save_predictions(predictions, save) if save is not None else predictions)
    result: Result = {"model": str(model), "images": [each.to_plain() for each in found]}
    if save is not None:
        result["page"] = str(save / INDEX)

    def render(console: Console) -> None:
        table = Table("image", "answers")
        for each in found:
            answers = ", ".join(f"{answer.name} {answer.score:.0%}" for answer in each.answers)
            table.add_row(each.source, answers or each.error)
        console.print(table)
        if save is not None:
            console.print(f"pictures: {save / INDEX}")

    return finish(result, as_json, render)

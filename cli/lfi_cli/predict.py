"""lfi predict"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, whole_table
from lfi_pipeline.core.options import Option, check

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from lfi_pipeline.exporting.predict import EncodeText


@dataclass(frozen=True, kw_only=True, slots=True)
class Predict:
    """Options of `lfi predict`."""

    images: Annotated[
        tuple[Path, ...], Option("Image files, or directories of them.", positional=True, at_least_one=True)
    ]
    model: Annotated[Path, Option("A directory made by lfi export.")]
    words: Annotated[
        tuple[str, ...], Option("Names to ask for; left out: the model's classes.", separator=",", metavar="NAME,...")
    ] = ()
    top: Annotated[int, Option("Answers an image, the best ones; of words all.", ge=1)] = 5
    save: Annotated[
        Path | None, Option("Directory for pictures of the answers with their maps, and a page of them all.")
    ] = None
    teacher: Annotated[
        str | None,
        Option("Whose text encoder reads words that the model does not know: the teacher that it was taught by."),
    ] = None
    device: Annotated[str, Option("auto (CUDA where there is one), cpu, cuda or cuda:N.")] = "auto"

    def __post_init__(self) -> None:
        check(self)


def _encoder(name: str, wanted: tuple[str, str]) -> EncodeText:
    """Return what embeds words as the cache's were, by the teacher called `name`, loaded when it is first asked."""

    def encode(words: Sequence[str]) -> Tensor:
        from lfi_pipeline.core.errors import ConfigError
        from lfi_pipeline.teachers import load_teacher

        teacher = load_teacher(name)
        found = teacher.identity.name, teacher.identity.tag
        if found != wanted:
            raise ConfigError(f"`teacher` must be the model's, {':'.join(wanted)}, got {':'.join(found)}.")
        return teacher.embed_words(words).half().float()

    return encode


@command(Predict)
def predict(config: Predict) -> Shown:
    """Say what is in pictures, and where the student looked for it.

    Example: lfi predict photos/ --model exported/ --save answers/
    """
    from lfi_pipeline.core.device import resolve_device
    from lfi_pipeline.exporting import load
    from lfi_pipeline.exporting.predict import INDEX, find_images, predict_images, save_predictions

    paths = find_images(config.images)
    model = load(config.model, device=resolve_device(config.device))
    words = [word.strip() for word in config.words if word.strip()] or None
    encode = _encoder(config.teacher, model.config.teacher) if config.teacher is not None else None
    predictions = predict_images(model, paths, words, top=config.top, encode=encode, skip_unreadable=len(paths) > 1)
    shown = list(save_predictions(predictions, config.save) if config.save is not None else predictions)
    result: Result = {"model": str(config.model), "images": [each.to_plain() for each in shown]}
    if config.save is not None:
        result["page"] = str(config.save / INDEX)

    def render(console: Console) -> None:
        from rich.table import Table

        table = Table("image", "answers")
        for each in shown:
            answers = ", ".join(f"{answer.name} {answer.score:.0%}" for answer in each.answers)
            table.add_row(each.source, answers or each.error)
        whole_table(console, table)
        if config.save is not None:
            console.print(f"pictures: {config.save / INDEX}")

    return Shown(result, render)

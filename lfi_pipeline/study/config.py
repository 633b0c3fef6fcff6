"""What a study asks: settings alone, which import no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import Option, check

INTERACTION, GRADCAM, AUTO = "interaction", "gradcam", "auto"
KINDS = (AUTO, INTERACTION, GRADCAM)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """Options of `make_study`."""

    targets: Annotated[
        Path, Option("Cache of the split that both runs were validated on: it knows the words of the images.")
    ]
    items: Annotated[int, Option("Pairs of image and word, evenly over domains and classes.", ge=1)] = 60
    maps: Annotated[
        str,
        Option(
            "Which maps; auto is interaction if both runs have queries, else gradcam.",
            choices=KINDS,
            noun="kind of map",
        ),
    ] = AUTO
    repeat: Annotated[float, Option("Share of the items shown to each rater again with sides swapped.", ge=0, le=1)] = (
        0.1
    )
    catch: Annotated[int, Option("Trials more: the teacher's map against the same one, its cells shuffled.", ge=0)] = 0
    weights: Annotated[str, Option("Which checkpoint.", choices=("last", "best"))] = "last"
    data_root: Annotated[Path | None, Option("Where the images lie, if they moved.")] = None
    seed: Annotated[int, Option("Of the choice of items and of whose map is which.", ge=0)] = 0
    device: Annotated[str, Option("auto (CUDA where there is one), cpu, cuda or cuda:N.")] = "auto"

    def __post_init__(self) -> None:
        check(self)
        if self.catch > self.items:
            raise ConfigError(
                f"catch must be from 0 to the number of items ({self.items}), got {self.catch}.", argument="catch"
            )

"""Which student is trained and with which queries: settings alone, which import no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import Option, check

STATES = ("persistent", "reset")
SCALES = {"auto": -0.5, "1/d": -1.0, "1/sqrt(d)": -0.5}
"""What scores of queries and patches are multiplied by, as powers of d, the channels of a head; `auto` is settled by the
objective (`TrainConfig.resolved_queries`), and without one the usual."""
READOUTS = ("auto", "class", "text")
HEADS = ("linear", "queries")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig:
    """Which backbone to train."""

    name: Annotated[
        str,
        Option(
            "Any model of timm's that gives intermediate features; MODEL.TAG names its weights. Repeat it to train "
            "several from one read, each in OUT/NAME.",
            name="student",
            repeated=True,
        ),
    ] = "vit_tiny_patch16_224"
    image_size: Annotated[int | None, Option("Pixels a side; left out: the student's own.", ge=1)] = None
    patch_size: Annotated[int | None, Option("For plain vision transformers; left out: the student's own.", ge=1)] = (
        None
    )
    kwargs: Annotated[
        Mapping[str, Any],
        Option("Further argument of timm.create_model, such as depth=6.", name="student_arg", metavar="KEY=VALUE"),
    ] = field(default_factory=dict)
    pretrained: Annotated[
        bool, Option("Start from timm's weights, or from the file of `pretrained_cfg_overlay` in student_arg.")
    ] = False
    taps: Annotated[
        tuple[int, ...],
        Option(
            "Indices into the model's features, such as 1,3,5; auto: three, evenly spaced.", separator=",", empty="auto"
        ),
    ] = ()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryConfig:
    """Shape of the queries. It is this project's choice: the paper's was not known to us when this was written."""

    width: Annotated[int, Option("Channels of a query.", name="query_width", ge=1)] = 128
    heads: Annotated[int, Option("Attention heads at each tap.", name="query_heads", ge=1)] = 4
    scale: Annotated[
        str,
        Option(
            "What scores of queries and patches are multiplied by, with d channels a head: 1/sqrt(d), as in transformers, "
            "or 1/d, which keeps attention from settling on few cells early. auto: 1/sqrt(d) with the objective lfi, "
            "whose maps do that, 1/d without.",
            name="query_scale",
            choices=tuple(SCALES),
        ),
    ] = "auto"
    state: Annotated[
        str, Option("Whether queries are carried from tap to tap, or start anew at each (an ablation).", choices=STATES)
    ] = "persistent"
    readout: Annotated[
        str,
        Option(
            "How the query head makes scores of final states: class (its auto), weights of their own for every class, "
            "or text, which any name can be asked of.",
            choices=READOUTS,
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        check(self)
        if self.width % self.heads:
            raise ConfigError(f"query width must be divisible by heads, got {self.width} and {self.heads}.")

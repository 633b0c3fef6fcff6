"""Which student is trained and with which queries: settings alone, which import no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import Option, check

MODES = ("text", "learned")
STATES = ("persistent", "reset")
READOUTS = ("concat", "max")


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
    """Shape of the queries (this project's choice: the paper's is not public)."""

    mode: Annotated[
        str,
        Option(
            "text: one for each word, seeded by it, dropped after training; learned: free slots that feed the head.",
            name="queries",
            choices=MODES,
            noun="query mode",
        ),
    ] = "text"
    slots: Annotated[int, Option("How many queries, of mode learned.", ge=1)] = 6
    width: Annotated[int, Option("Channels of a query.", name="query_width", ge=1)] = 128
    heads: Annotated[int, Option("Attention heads at each tap.", name="query_heads", ge=1)] = 4
    state: Annotated[
        str, Option("Whether queries are carried from tap to tap, or start anew at each (an ablation).", choices=STATES)
    ] = "persistent"
    readout: Annotated[str, Option("How the final states of learned slots become class scores.", choices=READOUTS)] = (
        "concat"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.width % self.heads:
            raise ConfigError(f"query width must be divisible by heads, got {self.width} and {self.heads}.")

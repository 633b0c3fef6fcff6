"""What interaction queries are told and what they answer, in both modes.

`text` (text_queries.py): one query per word, seeded by its text embedding; a scaffold of training.
`learned` (learned_queries.py): K slots that know no text, matched to the words' maps; kept with the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lfi_pipeline.errors import ConfigError, UnknownNameError

MODES = ("text", "learned")
STATES = ("persistent", "reset")
READOUTS = ("concat", "max")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryConfig:
    """Shape of the queries (this project's choice: the paper's is not public).

    Attributes:
        mode: `text` seeds one query per word by its embedding; `learned` has `slots` free ones that feed the head.
        slots: K, queries of mode `learned`.
        width: Dq, channels of a query.
        heads: attention heads at each tap.
        state: `persistent` carries Q_t to the next tap; `reset` starts every tap from Q_0 (the ablation).
        readout: how the slots' final states become class logits, see `SlotReadout`; of mode `learned`.
    """

    mode: str = "text"
    slots: int = 6
    width: int = 128
    heads: int = 4
    state: str = "persistent"
    readout: str = "concat"

    def __post_init__(self) -> None:
        for kind, value, choices in (
            ("query mode", self.mode, MODES),
            ("state", self.state, STATES),
            ("readout", self.readout, READOUTS),
        ):
            if value not in choices:
                raise UnknownNameError(kind, value, choices)
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"query width must be divisible by heads, got {self.width} and {self.heads}.")
        if self.slots < 1:
            raise ConfigError(f"slots must be 1 or more, got {self.slots}.")


@dataclass(frozen=True, slots=True)
class Supervision:
    """The words of B images and where the teacher saw them.

    Attributes:
        words: text embeddings [B, M, E].
        targets: per tap, maps [B, M, N_t]; a row sums to 1 or is all zero. None: words without maps, to be scored.
        weights: per tap, w [B, M]; 0 for padding and for a word without a map. None as `targets` is.
    """

    words: Tensor
    targets: Sequence[Tensor] | None = None
    weights: Sequence[Tensor] | None = None


@dataclass(frozen=True, slots=True)
class QueryOutput:
    """What the queries hold after the last tap. R is M in mode `text`, K in mode `learned`.

    Attributes:
        states: Q_L [B, R, Dq].
        seeds: Q_0 [B, R, Dq].
        kl: per tap, w_m mean_h KL(T_m || P_h) [B, M] of each word's own (`text`) or matched (`learned`) query, in
            nats; empty where no targets were given.
        match: [B, M], the slot of each word, -1 for a word without one; None but in mode `learned` with targets.
    """

    states: Tensor
    seeds: Tensor
    kl: list[Tensor] = field(default_factory=list)
    match: Tensor | None = None

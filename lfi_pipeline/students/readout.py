"""From the slots' final states to class logits."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.students.queries import QueryConfig


class SlotReadout(nn.Module):
    """Class logits of the slots, added to those of the pooled features. The forms are this project's choice.

    `concat` (the better one where both were measured): one linear map of all states side by side, so each slot has
    weights of its own.
    `max`: every slot gives class logits by one shared linear map; a class takes a smooth maximum over the slots
    (log of the mean of exp), so one slot that sees it is enough and it does not matter which.

    Args:
        config: slots, width and readout.
        classes: width of the head.
    """

    def __init__(self, config: QueryConfig, classes: int) -> None:
        super().__init__()
        self.form = config.readout
        self.linear = nn.Linear(config.width * (config.slots if self.form == "concat" else 1), classes)

    def forward(self, states: Tensor) -> Tensor:
        """Return [B, classes] from states [B, K, Dq]."""
        states = F.layer_norm(states, states.shape[-1:])
        logits: Tensor
        if self.form == "concat":
            logits = self.linear(states.flatten(1))
        else:
            logits = self.linear(states).logsumexp(1) - math.log(states.shape[1])
        return logits

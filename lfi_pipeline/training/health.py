"""Notice a run that goes to ruin before its weights do."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

_REMEMBERED = 100
_ENOUGH = 20
_EXPLODED = 100.0


class LossGuard:
    """Watches the losses and gradients of a run.

    Attributes:
        recent: the last losses, oldest first; a resume goes on with them.
    """

    def __init__(self, recent: Iterable[float] = ()) -> None:
        self.recent = deque(recent, maxlen=_REMEMBERED)

    def check(self, loss: float, gradient_norm: float) -> str | None:
        """Return what is wrong with a step, None if nothing is; such a step must not be taken.

        Args:
            loss: of the step. It must be finite and at most 100 times the median of the last hundred.
            gradient_norm: before clipping. It must be finite.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the norm of the gradient is {gradient_norm} (at a loss of {loss:.4g})"
        if len(self.recent) >= _ENOUGH:
            usual = statistics.median(self.recent)
            if loss > _EXPLODED * usual > 0:
                return f"the loss is {loss:.4g}, where the last {len(self.recent)} had a median of {usual:.4g}"
        self.recent.append(loss)
        return None

"""Notice a run that goes to ruin before its weights do."""

from __future__ import annotations

import math
import statistics
from collections import deque

_REMEMBERED = 100
_ENOUGH = 20
_EXPLODED = 100.0


class LossGuard:
    """Watches the losses and gradients of a run."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)

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
        if len(self._recent) >= _ENOUGH:
            usual = statistics.median(self._recent)
            if loss > _EXPLODED * usual > 0:
                return f"the loss is {loss:.4g}, where the last {len(self._recent)} had a median of {usual:.4g}"
        self._recent.append(loss)
        return None

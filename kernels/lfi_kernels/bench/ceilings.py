"""What the GPU can do at most, and the least time that the op could take of it (DESIGN.md, section 6)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from lfi_kernels.bench.shapes import Shape
from lfi_kernels.bench.timing import between, mark

COPY_BYTES = 2**30
PRODUCT_SIZE = 8192
_ROUNDS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Rates of this GPU, measured in this run.

    Attributes:
        copied: bytes a second, read and written, of a copy of 1 GiB.
        products: operations a second of an 8192 x 8192 x 8192 bf16 matrix product of random numbers.
    """

    copied: float
    products: float

    def least_seconds(self, shape: Shape) -> dict[str, float]:
        """The least time of the op by pass: its bytes at `copied` or its operations at `products`, if that is longer.

        Forward: X and the codes T are read, u read and z written; two products. Backward: X is read and dX written,
        T read, u, z and dz read and du written; five products. Both: the one after the other.
        """
        x = shape.batch * shape.patches * shape.dim * 2
        rows = shape.batch * shape.heads * shape.words * shape.dim * 2
        codes = shape.batch * shape.words * shape.patches
        product = 2 * shape.batch * shape.heads * shape.words * shape.patches * shape.dim
        forward = max((x + codes + 2 * rows) / self.copied, 2 * product / self.products)
        backward = max((2 * x + codes + 4 * rows) / self.copied, 5 * product / self.products)
        return {"forward": forward, "backward": backward, "both": forward + backward}


def measure_ceilings(device: str) -> Ceilings:
    """Measure both rates."""
    source = torch.randn(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    copy = _median_seconds(lambda: target.copy_(source))
    product = _median_seconds(lambda: torch.mm(left, right, out=out))
    return Ceilings(copied=2 * COPY_BYTES / copy, products=2 * PRODUCT_SIZE**3 / product)


def _median_seconds(run: Callable[[], object]) -> float:
    """Of one call, of many that are queued at once."""
    for _ in range(3):
        run()
    marks = [mark(True)]
    for _ in range(_ROUNDS):
        run()
        marks.append(mark(True))
    return statistics.median(between(*pair) for pair in pairwise(marks))

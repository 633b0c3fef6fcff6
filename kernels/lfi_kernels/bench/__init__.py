"""Timings of the interaction-query block against the usual ways to compute it. Needs torch, and triton on a GPU.

    python -m lfi_kernels.bench [--quick]

prints one JSON object a line. Every case computes the same thing from the same parameters, and is compared with the
folded reference in float64 before anything is timed. Forward and backward together, to every parameter and both
inputs; on a GPU in bf16, on the CPU in fp32.

Cases: `folded` is InteractionQueryBlock on the reference, `fused` on the Triton kernels (CUDA only); `projected`
builds K and V and one map a head; `sdpa` leaves the values to scaled_dot_product_attention and builds the map apart,
for the loss; `compiled folded` and `compiled projected` are those under torch.compile (CUDA only). `fused op` is the op
without the projections around it, and `floor` the least time that it could take: see `floor_seconds`.
"""

from __future__ import annotations

from lfi_kernels.bench.cases import Shape, shapes
from lfi_kernels.bench.compare import Row, compare, floor_seconds

__all__ = ["Row", "Shape", "compare", "floor_seconds", "shapes"]

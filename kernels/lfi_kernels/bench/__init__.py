"""Timings of the interaction-query block against the usual ways to compute it. Needs torch, and triton on a GPU.

    python -m lfi_kernels.bench [--quick] [--models ViT-S/16] [--cases fused,projected] [--csv bench.csv]

prints one JSON object a line, and on stderr a short line a shape. The cases of a shape compute the same thing from the
same parameters and inputs, and are compared with the folded reference in float64 before anything is timed. Timed are
the forward pass alone, the backward pass alone, to every parameter and both inputs, and both: on a GPU in bf16 as
replays of CUDA graphs, on the CPU in fp32 on one thread (see `timing`).

Cases: `folded` is InteractionQueryBlock on the reference, `fused` on the Triton kernels; `projected` builds K and V and
one map a head; `sdpa` leaves the values to scaled_dot_product_attention and builds the map apart, for the loss;
`compiled-folded` and `compiled-projected` are those under torch.compile. `fused-op` is the op without the projections
around it, and `floor` the least time that it could take by rates that are measured once a run: see `ceilings`. All but
`folded`, `projected` and `sdpa` need a GPU.

A full run on a GPU is 48 shapes. Without the compiled cases a shape should take seconds; compiling adds most of a
minute to each, so choose some with --models, --patches, --words and --query-dims. (Estimates: no GPU has run it yet.)
"""

from __future__ import annotations

from lfi_kernels.bench.cases import ON_CPU, ON_GPU, case_names
from lfi_kernels.bench.ceilings import Ceilings, measure_ceilings
from lfi_kernels.bench.compare import Row, ceiling_rows, compare, gain_bound, in_short, settled
from lfi_kernels.bench.shapes import WIDTHS, Shape, Sizes, shapes

__all__ = [
    "ON_CPU",
    "ON_GPU",
    "WIDTHS",
    "Ceilings",
    "Row",
    "Shape",
    "Sizes",
    "case_names",
    "ceiling_rows",
    "compare",
    "gain_bound",
    "in_short",
    "measure_ceilings",
    "settled",
    "shapes",
]

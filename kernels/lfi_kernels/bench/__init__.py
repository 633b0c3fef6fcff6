"""Timings of the interaction-query block against the usual ways to compute it. Needs torch, and triton on a GPU.

    python -m lfi_kernels.bench [--quick] [--models ViT-S/16] [--cases fused,projected] [--csv bench.csv]

prints one JSON object a line, and on stderr a short line a shape. The cases of a shape compute the same thing from the
same parameters and inputs, and are compared with the folded reference in float64 before anything is timed. Timed are
the forward pass alone, the backward pass alone, to every parameter and both inputs, and both: on a GPU in bf16 as
replays of CUDA graphs, on the CPU in fp32 on one thread (see `timing`).

Cases: `folded` is InteractionQueryBlock on the reference, `fused` on the Triton kernels, and `fused-nchw` on them with
features as a student's taps lay them out, which either pass copies: what it takes over `fused` is that; `projected`,
`sdpa` and `flex` are the usual ways (see `cases`), `compiled-...` those under torch.compile. `floor` is the least time
that the block could take by rates that are measured once a run: see `timing.Ceilings`. All but `folded`, `projected`
and `sdpa` need a GPU. For a GPU that is lent for some minutes there is `python -m lfi_kernels.bench.gpu`.
"""

from __future__ import annotations

from lfi_kernels.bench.cases import ON_CPU, ON_GPU, case_names
from lfi_kernels.bench.compare import Row, ceiling_rows, compare, gain_bound, in_short, settled
from lfi_kernels.bench.shapes import WIDTHS, Ceilings, Shape, Sizes, shapes
from lfi_kernels.bench.timing import measure_ceilings

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

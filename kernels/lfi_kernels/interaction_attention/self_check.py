"""Whether the fused kernels do on this GPU what the reference does: asked once a process, before they are chosen.

The kernels are proven under Triton's interpreter, on shapes small enough for it. What a compiler makes of them for the
GPU that somebody has is seen only there, so two small problems are solved both ways first. Compiling for them takes up
to half a minute, once: Triton keeps what it made on disk.
"""

from __future__ import annotations

import functools
import math
import warnings

import torch
from torch import Tensor

from lfi_kernels.interaction_attention import reference
from lfi_kernels.interaction_attention.op import fused_forward
from lfi_kernels.interaction_attention.triton_launch import processors

# Largest ||found - truth|| / ||truth|| of an output or a gradient.
TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float32: 1e-4}


@functools.cache
def is_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Run both passes of the kernels on small problems on `device`, and compare them with the reference in float64.

    Warns, once, where they cannot run or are wrong.
    """
    try:
        apart = largest_error(device, dtype)
    except Exception as error:  # whatever the compiler or the driver says: the reference can still run
        found = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        if apart <= TOLERANCES[dtype]:
            return True
        found = f"a relative error of {apart:g}, allowed {TOLERANCES[dtype]:g}"
    warnings.warn(
        f"The fused kernels are not used on {device} for {dtype}, where a check of them found {found}. The reference "
        "runs instead, slower and with more memory. LFI_KERNELS=reference silences this.",
        stacklevel=2,
    )
    return False


def largest_error(device: torch.device, dtype: torch.dtype) -> float:
    """Largest relative error of an output or a gradient, for 4 x 17 rows, 300 patches and 80 channels.

    Rows and patches are several tiles each. Two samples are too few for a GPU, so that its programs share their
    patches; of as many as there are processors each is one program's, which takes all tiles in turn.
    """
    return max(_error_of(batch, device, dtype) for batch in {2, max(2, processors(torch.empty(0, device=device)))})


def _error_of(batch: int, device: torch.device, dtype: torch.dtype) -> float:
    g = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        u, x = torch.randn(batch, 4, 17, 80, generator=g) / 4, torch.randn(batch, 300, 80, generator=g)
        target = torch.randint(0, 256, (batch, 17, 300), generator=g, dtype=torch.uint8).to(device)
        scale, weight = (torch.rand(batch, 17, generator=g).to(device) + 0.1 for _ in range(2))
        ignored = (torch.rand(batch, 300, generator=g) < 0.2).to(device)
        upstream = torch.randn(batch, 4, 17, 80, generator=g), torch.randn(batch, 4, 17, generator=g)
        results = []
        for kind in (dtype, torch.float64):
            leaves = tuple(each.to(device, dtype).to(kind).requires_grad_() for each in (u, x))
            if kind == dtype:
                z, kl, *_ = fused_forward(*leaves, target, weight, scale, ignored, "sqrt", 1e-5)
            else:
                z, kl = reference.interaction_attention(
                    leaves[0],
                    leaves[1],
                    target,
                    weight,
                    target_scale=scale,
                    key_padding_mask=ignored,
                    layer_norm_eps=1e-5,
                )
            gradients = torch.autograd.grad(
                (z, kl), leaves, [each.to(out) for each, out in zip(upstream, (z, kl), strict=True)]
            )
            results.append((z, kl, *gradients))
        return max(_distance(found, truth) for found, truth in zip(*results, strict=True))


def _distance(found: Tensor, truth: Tensor) -> float:
    distance = float((found.detach().double() - truth.detach()).norm() / truth.detach().norm())
    return math.inf if math.isnan(distance) else distance

"""Memory of one forward and backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lfi_kernels.bench.work import Work, upstream_of


def kept_bytes(work: Work) -> int:
    """Bytes that the forward pass keeps for the backward pass, beside inputs and parameters."""
    own = {each.untyped_storage().data_ptr() for each in (*work.leaves, *work.constants)}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = work.forward()
    del outputs
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def peak_bytes(work: Work) -> int:
    """Peak of the CUDA allocator over both passes, above inputs, parameters and the gradients that enter.

    The results count: both outputs, and the gradient of every leaf.
    """
    upstream = upstream_of(work.forward())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = work.forward()
    work.backward(outputs, upstream)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before

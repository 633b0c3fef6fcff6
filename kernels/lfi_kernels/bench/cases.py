"""The cases of a shape: each a work to be timed, and the exact one that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lfi_kernels.bench.maths import WAYS, Inputs, Way, folded
from lfi_kernels.bench.shapes import DTYPES, Shape, known
from lfi_kernels.bench.work import Work
from lfi_kernels.interaction_attention import interaction_attention
from lfi_kernels.interaction_query import LAYER_NORM_EPS, InteractionQueryBlock

ON_CPU = ("folded", "projected", "sdpa")
FUSED = "triton"
"""The value of LFI_KERNELS for the fused cases."""

ON_GPU = ("fused", "fused-op", *ON_CPU, "compiled-folded", "compiled-projected")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A work, and what makes the same of some samples, by their numbers, on the reference in float64."""

    work: Work
    exact: Callable[[Tensor], Work]


def case_names(device: str, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The cases that are asked for, in the order in which they are shown; all of the device's where none is.

    Raises:
        ValueError: the device has no such case.
    """
    choices = ON_GPU if device.startswith("cuda") else ON_CPU
    known("case", asked, choices, f" on {device}")
    return tuple(each for each in choices if each in asked or not asked)


def make_cases(shape: Shape, device: str, names: Sequence[str]) -> dict[str, Case]:
    """Bind the named cases to the same parameters and inputs."""
    block, given = make(shape, device)
    cases = {}
    for name in names:
        if name == "fused-op":
            cases[name] = _op_case(shape, given)
            continue
        kind = name.removeprefix("compiled-")
        way = folded if kind == "fused" else WAYS[kind]
        if kind != name:
            way = torch.compile(way, dynamic=False)
        choice = FUSED if name == "fused" else "reference"
        cases[name] = Case(work=_block_work(way, block, given, choice), exact=_exact_block(block, given))
    return cases


def make(shape: Shape, device: str) -> tuple[InteractionQueryBlock, Inputs]:
    """A block whose every path carries something, and random inputs; drawn on the device, for they are large."""
    g = torch.Generator(device).manual_seed(0)
    dtype = DTYPES[shape.dtype]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, device=device)

    block = InteractionQueryBlock(shape.query_dim, shape.dim, shape.heads).to(device)
    with torch.no_grad():
        for weight in block.parameters():
            weight.copy_(normal(*weight.shape) / math.sqrt(weight.shape[0]))
    maps = (2 * normal(shape.batch, shape.words, shape.patches)).softmax(-1)
    scale = maps.amax(-1).half()
    given = Inputs(
        normal(shape.batch, shape.words, shape.query_dim).to(dtype).requires_grad_(),
        normal(shape.batch, shape.patches, shape.dim).to(dtype).requires_grad_(),
        (maps / scale.float()[..., None]).clamp(max=1).sqrt().mul(255).round().to(torch.uint8),
        scale,
        1 - torch.rand(shape.batch, shape.words, generator=g, device=device),
    )
    return block.to(dtype), given


def _block_work(way: Way, block: InteractionQueryBlock, given: Inputs, choice: str) -> Work:
    return Work(
        run=lambda: way(block, given),
        leaves=(given.queries, given.features, *block.parameters()),
        constants=(given.target, given.scale, given.weight),
        choice=choice,
    )


def _exact_block(block: InteractionQueryBlock, given: Inputs) -> Callable[[Tensor], Work]:
    def exact(picked: Tensor) -> Work:
        wide = InteractionQueryBlock(block.query_dim, block.feature_dim, block.heads)
        wide.load_state_dict(block.state_dict())
        some = Inputs(
            _exact(given.queries, picked),
            _exact(given.features, picked),
            given.target[picked],
            given.scale[picked],
            given.weight[picked],
        )
        return _block_work(folded, wide.to(picked.device, torch.float64), some, "reference")

    return exact


def _op_case(shape: Shape, given: Inputs) -> Case:
    """The op without the projections around it, layer norm being part of it."""
    x = given.features.detach().requires_grad_()
    size = (shape.batch, shape.heads, shape.words, shape.dim)
    g = torch.Generator(x.device).manual_seed(2)
    u = (torch.randn(size, generator=g, device=x.device) / math.sqrt(shape.dim)).to(x.dtype).requires_grad_()

    def exact(picked: Tensor) -> Work:
        some = given.target[picked], given.scale[picked], given.weight[picked]
        return _op_work(_exact(u, picked), _exact(x, picked), *some, "reference")

    return Case(work=_op_work(u, x, given.target, given.scale, given.weight, FUSED), exact=exact)


def _op_work(u: Tensor, x: Tensor, target: Tensor, scale: Tensor, weight: Tensor, choice: str) -> Work:
    return Work(
        run=lambda: interaction_attention(u, x, target, weight, target_scale=scale, layer_norm_eps=LAYER_NORM_EPS),
        leaves=(u, x),
        constants=(target, scale, weight),
        choice=choice,
    )


def _exact(tensor: Tensor, picked: Tensor) -> Tensor:
    return tensor.detach()[picked].double().requires_grad_()

"""Weights of terms that follow from gradients: a term pulls on the features with a share of the task's force.

The gradients of the task and of each term are taken at the features of the first tap, which all of the student's later
layers and queries are computed from:

    ratio_k <- 0.8 ratio_k + 0.2 |g_task| / |g_k|          every 20 steps; the first measurement as it is
    weight_k = share_k ratio_k

A constant does not transfer: a binary cross-entropy is a mean over classes, so its gradient falls with their number,
and a cross-entropy's does not. The form is this project's choice; GradNorm (Chen, Badrinarayanan, Lee, Rabinovich, ICML
2018) is a relative that learns the weights.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from lfi_pipeline.core.errors import ConfigError

EVERY = 20
"""Steps from one measurement to the next."""
SMOOTHING = 0.8
"""What stays of the ratio at a measurement."""
_LARGEST_RATIO = 1e4
"""A term with a smaller gradient than the task's by more than this has nothing to say of this batch."""


class GradientBalance:
    """The ratios of a run.

    A measurement holds from the next step on, so that all pieces of a batch, in every process, are weighted alike.
    Without a task the first term takes its place, with weight 1.

    Args:
        terms: whose weight is relative.
        reference: name of the loss that they are measured against: the task, or the first term where there is none.
    """

    def __init__(self, terms: Sequence[str], reference: str) -> None:
        self.reference = reference
        self.terms = tuple(term for term in terms if term != reference)
        self.ratios: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Whether to measure at `step`."""
        return bool(self.terms) and step % EVERY == 0

    def ratio(self, term: str) -> float:
        """Ratio that `term` has now: 0 before the first measurement, 1 for the reference."""
        return 1.0 if term == self.reference else self.ratios.get(term, 0.0)

    def update(self, squares: Mapping[str, float]) -> None:
        """Take in a measurement.

        Args:
            squares: by name of the loss, the squared norm of its gradient, summed over the whole batch (any common
                factor cancels). What is not finite, or too small to compare with, leaves the ratio as it was.
        """
        task = squares[self.reference]
        for term in self.terms:
            if not (math.isfinite(task) and math.isfinite(squares[term])) or squares[term] <= 0:
                continue
            found = math.sqrt(task / squares[term])
            if found <= _LARGEST_RATIO:
                old = self.ratios.get(term, found)
                self.ratios[term] = SMOOTHING * old + (1 - SMOOTHING) * found

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return dict(self.ratios)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.ratios = {term: float(state[term]) for term in self.terms if term in state}


def gradient_squares(losses: Mapping[str, Tensor], feature: Tensor, pooled: Tensor) -> dict[str, Tensor]:
    """Return the squared norm of each loss's gradient at the tensor that `feature` was taken from, fp32 scalars.

    The graph is kept, and no parameter's gradient is touched.

    Args:
        losses: scalars.
        feature: patch tokens or feature map of a tap.
        pooled: what the backbone made of them in the end.

    Raises:
        ConfigError: the backbone's result is not made from its features.
    """
    edge = feature_edge(feature, nodes_of(pooled))
    if edge is None:
        raise ConfigError(
            "Weights relative to the task's gradient need a backbone whose result is made from the features of its "
            "taps; those of this one are computed on the side. Give every term a constant weight, or choose another "
            "student."
        )
    found = {}
    for name, loss in losses.items():
        square = torch.zeros((), device=loss.device)
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, edge, retain_graph=True, allow_unused=True)
            if gradient is not None:
                square = gradient.float().square().sum()
        found[name] = square
    return found


def nodes_of(tensor: Tensor) -> set[Node]:
    """Return every operation that `tensor` was made by; leaves are left out."""
    found: set[Node] = set()
    waiting = [get_gradient_edge(tensor).node]
    while waiting:
        node = waiting.pop()
        if node not in found and "AccumulateGrad" not in node.name():
            found.add(node)
            waiting.extend(before for before, _ in node.next_functions if before is not None)
    return found


def feature_edge(feature: Tensor, reached: set[Node]) -> GradientEdge | None:
    """Return the nearest tensor behind `feature` that was made by an operation of `reached`; None where there is none.

    Args:
        feature: a feature map as the backbone gives it, or what was rearranged of it.
        reached: `nodes_of` the backbone's result.
    """
    waiting = deque([get_gradient_edge(feature)])
    seen: set[Node] = set()
    while waiting:
        edge = waiting.popleft()
        if edge.node in reached:
            return edge
        for node, number in edge.node.next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                waiting.append(GradientEdge(node, number))
    return None

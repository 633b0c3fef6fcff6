"""Find in the graph of a forward pass the tensor that a backbone's feature map was taken from.

timm hands out features as rearranged copies (without class tokens, channels first), which nothing else is computed
from. A gradient with respect to such a copy misses whatever the backbone computed from the original.
"""

from __future__ import annotations

from collections import deque

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge


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

"""Nested state dicts as named tensors and plain JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Tree = Mapping[str, Any]


def flatten(state: Tree) -> tuple[dict[str, Tensor], Any]:
    """Split `state` into its tensors and everything else.

    Args:
        state: nested mappings (keys: str or int), lists and tuples; leaves are tensors or JSON scalars.

    Returns:
        The tensors, on the CPU, contiguous, none sharing memory with another or with `state`; and JSON from which
        `unflatten` rebuilds the rest: a tensor is `{"tensor": name}`, a mapping `{"dict": [[key, value], ...]}`, so
        that keys keep their order and ints stay ints, a list or tuple `{"list": [...]}` or `{"tuple": [...]}`.

    Raises:
        TypeError: a key or leaf of another type; names its path.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _plain(state, "", tensors)


def _plain(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = f"{len(tensors):06d}{path}"  # the number keeps names apart: a key may itself hold a slash
        tensors[name] = node.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(node, Mapping):
        for key in node:
            if type(key) not in (str, int):
                raise TypeError(f"Keys of a state must be str or int, got {key!r} at {path or '/'}.")
        return {"dict": [[key, _plain(value, f"{path}/{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        kind = "tuple" if isinstance(node, tuple) else "list"
        return {kind: [_plain(value, f"{path}/{index}", tensors) for index, value in enumerate(node)]}
    if node is None or type(node) in (bool, int, float, str):
        return node
    raise TypeError(f"Leaves of a state must be tensors or JSON scalars, got a {type(node).__name__} at {path or '/'}.")


def unflatten(tensors: Mapping[str, Tensor], plain: Any) -> Any:
    """Undo `flatten`.

    Raises:
        ValueError, KeyError: `plain` is not of `flatten`, or names a tensor that is not there.
    """
    if not isinstance(plain, dict):
        return plain
    match plain:
        case {"tensor": str(name)}:
            return tensors[name]
        case {"dict": list(items)}:
            return {key: unflatten(tensors, value) for key, value in items}
        case {"list": list(values)}:
            return [unflatten(tensors, value) for value in values]
        case {"tuple": list(values)}:
            return tuple(unflatten(tensors, value) for value in values)
    raise ValueError(f"not a node of a state: {sorted(plain)}")

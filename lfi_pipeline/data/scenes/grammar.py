"""Captions of `scenes`: a small grammar over object names and the relations that hold between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Placed:
    """An object's name and centre, in fractions of the image."""

    name: str
    x: float
    y: float


def with_article(name: str) -> str:
    """Return `a name` or `an name`."""
    return f"{'an' if name[0] in 'aeio' or name == 'umbrella' else 'a'} {name}"


def relation(first: Placed, second: Placed) -> str:
    """Return the relation of `first` to `second` along the axis on which their centres differ most."""
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def caption(objects: Sequence[Placed], rng: np.random.Generator) -> str:
    """Name every object once, in random order, with relations that are true of the picture."""
    order = [objects[i] for i in rng.permutation(len(objects))]
    pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
    clauses = [_clause(pair, rng) for pair in pairs]
    opening = ("", "there is ", "we see ")[rng.integers(3)]
    return opening + (" and ", " with ")[rng.integers(2)].join(clauses)


def _clause(pair: Sequence[Placed], rng: np.random.Generator) -> str:
    names = [with_article(each.name) for each in pair]
    if len(pair) == 1:
        return names[0]
    if rng.random() < 0.6:
        return f"{names[0]} {relation(pair[0], pair[1])} {names[1]}"
    return f"{names[0]} {('and', 'next to')[rng.integers(2)]} {names[1]}"

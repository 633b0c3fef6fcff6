"""What the scores of a student's head are called, in training as in evaluation. Imports nothing."""

from __future__ import annotations

from collections.abc import Mapping

_DOMAINS = {"seen": "seen domains", "heldout": "held-out domains"}


def over_domains(name: str, heading: str) -> dict[str, str]:
    """Return the names of a score on seen and on held-out domains -> their headings."""
    return {f"{name}_{part}": f"{heading}, {told}" for part, told in _DOMAINS.items()}


HEAD_SCORES: Mapping[str, str] = {
    **over_domains("top1", "top-1"),
    **over_domains("top5", "top-5"),
    **over_domains("map", "mAP"),
}
"""Scores that a run's summary and its evaluation may hold, shares in [0, 1] -> their headings."""

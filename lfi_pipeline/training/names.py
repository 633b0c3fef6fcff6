"""What runs and their scores are called."""

from __future__ import annotations

from collections.abc import Mapping

from lfi_pipeline.training.config import TrainConfig

SCORES: Mapping[str, str] = {
    "top1_seen": "top-1, seen domains",
    "top1_heldout": "top-1, held-out domains",
    "top5_seen": "top-5, seen domains",
    "top5_heldout": "top-5, held-out domains",
    "map_seen": "mAP, seen domains",
    "map_heldout": "mAP, held-out domains",
}
"""Scores that a run's summary may hold, shares in [0, 1] -> their headings."""


def run_name(config: TrainConfig) -> str:
    """Return STUDENT-OBJECTIVE-SEED, with what makes a run a control or an ablation between them."""
    parts = [config.student.name, config.objective]
    if config.stream.maps != "teacher":
        parts.append(config.stream.maps)
    if config.uses_queries and config.queries.mode != "text":
        parts.append(config.queries.mode)
    if config.uses_queries and config.queries.state != "persistent":
        parts.append(config.queries.state)
    return "-".join([*parts, str(config.stream.seed)]).replace("/", "-")

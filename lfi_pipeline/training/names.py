"""What runs are called."""

from __future__ import annotations

from lfi_pipeline.training.config import TrainConfig


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

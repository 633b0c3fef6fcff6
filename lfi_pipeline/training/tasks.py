"""What the labels of a cache ask of a student: its loss, its probabilities and its scores."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.errors import ConfigError

CLASSIFICATION, MULTI_LABEL, NONE = "classification", "multi-label", "none"


def resolve_task(asked: str, labels: Sequence[Sequence[int]], classes: int) -> str:
    """Return the task that `auto` stands for, or check the one that is asked for.

    Args:
        asked: one of `config.TASKS`.
        labels: of every training image.
        classes: how many there are.

    Raises:
        ConfigError: the labels do not allow the task.
    """
    counts = {len(each) for each in labels}
    if asked == NONE:
        return NONE
    if not classes or counts <= {0}:
        raise ConfigError(
            "The cache holds no labels, so there is no task to learn. Train with --task none (pure distillation)."
        )
    if asked == "auto":
        return CLASSIFICATION if counts == {1} else MULTI_LABEL
    if asked == CLASSIFICATION and counts != {1}:
        raise ConfigError(
            f"task 'classification' needs exactly one label for every image, found images with {sorted(counts)}. "
            "Use --task multi-label."
        )
    return asked


def task_loss(task: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each image [B]: cross-entropy, or the mean binary cross-entropy of its classes.

    Args:
        task: `classification` or `multi-label`.
        logits: [B, C].
        labels: fp32 [B, C] in [0, 1]; of `classification`, rows sum to 1.
    """
    logits = logits.float()
    if task == CLASSIFICATION:
        return F.cross_entropy(logits, labels, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def probabilities(task: str, logits: Tensor) -> Tensor:
    """Probability of each class, [B, C]."""
    return logits.float().softmax(-1) if task == CLASSIFICATION else logits.float().sigmoid()


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of images with their label among the `k` highest scores; scores and labels [S, C]."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return float(labels.gather(1, best).sum(1).clamp(max=1).mean())


def main_score(task: str) -> str | None:
    """Name of the validation score by which the best checkpoint is chosen; None: there is none."""
    return {CLASSIFICATION: "top1_seen", MULTI_LABEL: "map_seen"}.get(task)

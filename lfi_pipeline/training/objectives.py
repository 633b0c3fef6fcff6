"""What a student learns from: the task, and one more term where the objective has one."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.data.replay import view_maps
from lfi_pipeline.students import Features, Student
from lfi_pipeline.targets import decode_maps
from lfi_pipeline.training.data import Batch


def task_loss(features: Features, batch: Batch) -> Tensor:
    """Multi-label binary cross-entropy, mean over images and classes; scalar."""
    return F.binary_cross_entropy_with_logits(features.logits.float(), batch.labels)


def embedding_loss(student: Student, features: Features, batch: Batch) -> Tensor:
    """1 - cosine between the projected pooled features and the teacher's image embedding, mean; scalar in [0, 2]."""
    assert student.to_embedding is not None
    assert batch.image_embedding is not None
    projected = student.to_embedding(features.pooled).float()
    return 1 - F.cosine_similarity(projected, batch.image_embedding, dim=-1).mean()


def interaction_loss(
    student: Student,
    features: Features,
    batch: Batch,
    *,
    vocabulary: Tensor,
    layers: tuple[int, ...],
    codec: str,
    uniform: bool = False,
) -> Tensor:
    """Mean over taps of L_t = sum_m w_m mean_h KL(T_t,m || P_t,h,m) / sum_m w_m (DESIGN section 5); scalar, nats.

    Args:
        vocabulary: text embeddings of all words [V, E].
        layers: for each tap, the teacher layer it is paired with.
        codec: codec of the stored maps.
        uniform: replace every present map by the uniform one (a control).
    """
    assert student.queries is not None
    assert batch.maps is not None
    assert batch.scale is not None
    assert batch.words is not None
    stored = decode_maps(batch.maps, batch.scale, codec)  # [B, L, M, gh, gw]
    if uniform:
        cells = stored.shape[-1] * stored.shape[-2]
        stored = (stored.sum((-2, -1), keepdim=True) > 0).float().expand_as(stored) / cells
    present = (batch.words >= 0)[:, None, :]  # [B, 1, M]
    cut: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    targets, weights = [], []
    for layer, grid in zip(layers, features.grids, strict=True):
        if grid not in cut:
            mass = view_maps(stored, batch.windows, grid).flatten(-2)  # [B, L, M, N]
            kept = mass.sum(-1) * present
            cut[grid] = mass / mass.sum(-1, keepdim=True).clamp_min(1e-12), kept
        target, kept = cut[grid]
        targets.append(target[:, layer])
        weights.append(kept[:, layer])
    words = vocabulary[batch.words.clamp_min(0)]
    loss: Tensor = student.queries(words, features.taps, targets, weights)
    return loss

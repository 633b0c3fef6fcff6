"""k nearest neighbours on frozen features, weighted by similarity.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised Vision Transformers"
(DINO), ICCV 2021, section 4.1 and its code, after Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", CVPR 2018, section 3.4: cosine similarity, k = 20, a neighbour's vote is exp(cosine / 0.07).
A class's score is its share of the votes, so that images with several labels are scored too.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.errors import ConfigError

K, TEMPERATURE = 20, 0.07
_QUERIES, _REFERENCES = 512, 32768  # similarities that are held at once: 64 MiB in fp32


def knn_scores(
    reference: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
    chunks: tuple[int, int] = (_QUERIES, _REFERENCES),
) -> Tensor:
    """Return each class's share of the votes, [Q, C] in [0, 1], on the device of `queries`.

    Args:
        reference: features [N, D] of the images that vote; all tensors on one device.
        labels: bool [N, C].
        queries: features [Q, D] of the images to classify.
        k: neighbours that vote.
        temperature: of the votes.
        chunks: queries and references that are compared at a time.

    Raises:
        ConfigError: `k` is not in 1..N, or `temperature` is not positive.
    """
    if not 1 <= k <= len(reference):
        raise ConfigError(
            f"k-NN needs a k between 1 and the number of training images, got k = {k} of {len(reference)} images. Give "
            "a smaller --knn-k, or --no-probes."
        )
    if temperature <= 0:
        raise ConfigError(f"knn_temperature must be positive, got {temperature}.")
    reference = F.normalize(reference, dim=1)
    scores: list[Tensor] = []
    for part in torch.split(F.normalize(queries, dim=1), chunks[0]):
        similarity, neighbour = _nearest(part, reference, k, chunks[1])
        votes = ((similarity - similarity[:, :1]) / temperature).exp()  # the largest is 1, whatever the temperature
        votes = votes / votes.sum(1, keepdim=True)
        # one neighbour at a time: the labels of all would be [Q, k, C]
        voted = (vote[:, None] * labels[voter] for vote, voter in zip(votes.T, neighbour.T, strict=True))
        scores.append(functools.reduce(torch.add, voted))
    return torch.cat(scores)


def _nearest(queries: Tensor, reference: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Return similarity and index of the `k` most similar, [Q, k] each, the most similar first."""
    best = queries.new_full((len(queries), 0), 0.0)
    index = torch.zeros((len(queries), 0), dtype=torch.long, device=queries.device)
    for first in range(0, len(reference), chunk):
        found = queries @ reference[first : first + chunk].T
        places = torch.arange(first, first + found.shape[1], device=queries.device).expand_as(found)
        best, index = torch.cat([best, found], 1), torch.cat([index, places], 1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        index = index.gather(1, kept)
    return best, index

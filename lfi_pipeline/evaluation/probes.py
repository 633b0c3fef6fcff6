"""Probes of frozen features: k nearest neighbours, and logistic regression, its penalty chosen on held-back images.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised Vision Transformers"
(DINO), ICCV 2021, section 4.1 and its code, after Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", CVPR 2018, section 3.4: cosine similarity, k = 20, a neighbour's vote is exp(cosine / 0.07).
A class's score is its share of the votes, so that images with several labels are scored too.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), ICML 2021, appendix A.3:
L-BFGS, and an L2 penalty from a logarithmic sweep on held-out data, then a fit on all training images. Multinomial
where every image has one label, else one binary regression a class, all with one penalty.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.training.validate import CLASSIFICATION

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
            "a smaller `knn_k`, or `probes=False`."
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
        similarity = queries @ reference[first : first + chunk].T
        places = torch.arange(first, first + similarity.shape[1], device=queries.device).expand_as(similarity)
        best, index = torch.cat([best, similarity], 1), torch.cat([index, places], 1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        index = index.gather(1, kept)
    return best, index


L2_GRID = tuple(10 ** (exponent / 2) for exponent in range(2, -13, -1))
"""10 to 1e-6 in half decades, strongest first: each fit starts from the one before it."""
HELD_BACK = 5
"""One image of so many is held back to choose the penalty."""
_PATIENCE = 4  # penalties in a row that are worse than the best end the sweep: the weakest take longest to fit
_ROWS = 65536
_ITERATIONS = 300
_LEAST_VARIATION = 1e-6  # of a feature against its mean: below it is rounding, not variation


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        mean, scale: of the features it was fitted on, [D]; a feature that never varied has scale 1.
        weight: [C, D], of standardised features; zero for a class that could not be fitted.
        bias: [C].
        known: bool [C], classes with positives (and, of several labels, negatives) among the images it was fitted on.
        always: bool [C], classes that every one of those images has.
        task: `classification` or `multi-label`.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    known: Tensor
    always: Tensor
    task: str

    def scores(self, features: Tensor) -> Tensor:
        """Return the probability of each class, [Q, C]; 0 for a class that the training images lack."""
        logits = (features - self.mean) / self.scale @ self.weight.T + self.bias
        logits = logits.masked_fill(~self.known, -torch.inf)
        probabilities = logits.softmax(1) if self.task == CLASSIFICATION else logits.sigmoid()
        # A softmax over no class at all is NaN.
        return torch.where(self.always, 1.0, probabilities.nan_to_num(0.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenProbe:
    """A probe fitted on all images, and how its penalty was chosen.

    Attributes:
        probe: the probe.
        l2: its penalty.
        held_back: images on which penalties were compared.
        grid: penalty that was tried -> score on the images held back.
    """

    probe: LinearProbe
    l2: float
    held_back: int
    grid: dict[float, float]


def choose_probe(
    features: Tensor,
    labels: Tensor,
    task: str,
    metric: Callable[[Tensor, Tensor], float],
    *,
    grid: Sequence[float] = L2_GRID,
    seed: int = 0,
) -> ChosenProbe:
    """Fit a probe for each penalty on four fifths of the images, and with the best one on all.

    Args:
        features: [N, D].
        labels: bool [N, C].
        task: `classification` or `multi-label`.
        metric: of scores and labels [R, C]; higher is better. Among equals the strongest penalty is taken.
        grid: penalties, the strongest first; weak ones are left out once several in a row were worse.
        seed: which images are held back.

    Raises:
        ConfigError: fewer than `HELD_BACK` images.
    """
    if len(features) < HELD_BACK:
        raise ConfigError(
            f"The linear probe needs {HELD_BACK} training images at least, found {len(features)}. Raise `probe_limit`, "
            "or give `probes=False`."
        )
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).to(features.device)
    count = len(features) // HELD_BACK
    held, kept = order[:count], order[count:]
    fitted, compared = (features[kept], labels[kept]), (features[held], labels[held])
    scores: dict[float, float] = {}
    probe: LinearProbe | None = None
    for l2 in progress_bar(grid, desc="linear probe", unit="fit", leave=False):
        probe = fit_probe(*fitted, task, l2, start=probe)
        scores[l2] = metric(probe.scores(compared[0]), compared[1])
        best = max(scores, key=lambda tried: (scores[tried], tried))
        if len(scores) > _PATIENCE and all(score < scores[best] for score in list(scores.values())[-_PATIENCE:]):
            break
    return ChosenProbe(probe=fit_probe(features, labels, task, best), l2=best, held_back=count, grid=scores)


def fit_probe(
    features: Tensor, labels: Tensor, task: str, l2: float, *, start: LinearProbe | None = None
) -> LinearProbe:
    """Minimise the mean loss of the images plus l2/2 times the squared weights; biases are free.

    The loss is the cross-entropy, or the sum over classes of the binary one. With N images, `l2` is scikit-learn's
    1 / (C N).

    Args:
        features: [N, D]; standardised here.
        labels: bool [N, C].
        task: `classification` or `multi-label`.
        l2: the penalty, positive.
        start: a probe fitted on the same images, to start from.
    """
    positives = labels.sum(0)
    always = positives == len(labels)
    known = (positives > 0) & ~always
    parts = torch.split(features, _ROWS)  # a copy of all in double precision might not fit
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(features)
    squares = torch.stack([(part.double() - mean).square().sum(0) for part in parts]).sum(0)
    scale = (squares / len(features)).sqrt()
    scale = torch.where(scale > _LEAST_VARIATION * mean.abs(), scale, 1.0)
    mean, scale = mean.to(features.dtype), scale.to(features.dtype)
    classes, width = labels.shape[1], features.shape[1]
    weight, bias = features.new_zeros(classes, width), features.new_zeros(classes)
    if known.any():
        initial = torch.zeros_like(bias) if start is None else start.bias
        solved = _minimise(
            (features - mean) / scale,
            labels[:, known],
            task,
            l2,
            (weight if start is None else start.weight)[known].clone(),
            initial[known].clone(),
        )
        weight[known], bias[known] = solved
    kept = {"known": known, "always": always}
    return LinearProbe(mean=mean, scale=scale, weight=weight, bias=bias, task=task, **kept)


def _minimise(x: Tensor, targets: Tensor, task: str, l2: float, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    weight.requires_grad_()
    bias.requires_grad_()
    loss_of = F.cross_entropy if task == CLASSIFICATION else F.binary_cross_entropy_with_logits
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = l2 / 2 * weight.square().sum()
        torch.autograd.backward(total)
        for rows, wanted in zip(torch.split(x, _ROWS), torch.split(targets, _ROWS), strict=True):
            loss = loss_of(F.linear(rows, weight, bias), wanted.to(x.dtype), reduction="sum") / len(x)
            torch.autograd.backward(loss)
            total = total.detach() + loss.detach()
        return total.detach()

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()

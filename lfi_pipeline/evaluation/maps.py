"""Where a student looks: its queries' interaction maps of words, and Grad-CAM of its class logits.

Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017, section 3, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.data import Dataset
from lfi_pipeline.students import Student, TextQueries
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.monitor import feature_edge, nodes_of


def class_maps(student: Student, images: Tensor, image_of: Tensor, labels: Tensor) -> Tensor:
    """Return the Grad-CAM of a class logit for each of P pairs of image and class.

        alpha_k = mean over cells of dy_c / dA_k,   map = ReLU(sum_k alpha_k A_k)

    y_c is the logit of the class, A_k channel k of the features of the student's last tap. A backbone that predicts
    from a class token reads no patch after its last block, where every gradient is 0: there A is the features that
    enter that block, as is usual for vision transformers.

    Args:
        student: with a head, on any device and in either mode (it is scored in mode `eval`); nothing of it changes.
        images: uint8 [B, 3, H, W] of `student.size`, on the student's device.
        image_of: int64 [P], the image of each pair. Pairs of one image share its forward pass.
        labels: int64 [P], the class of each pair.

    Returns:
        fp32 [P, rows, columns]; each map sums to 1, or is all zero where nothing speaks for the class.

    Raises:
        ConfigError: the student has no head, or a backbone whose features are not what its logits are made from.
    """
    if not student.classifies:
        raise ConfigError(
            "Class maps need a student with a head, got one trained without labels (task none). Score its interaction "
            "maps alone."
        )
    was_training = student.training
    student.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _class_maps(student, images, image_of, labels)
    finally:
        student.train(was_training)


def _class_maps(student: Student, images: Tensor, image_of: Tensor, labels: Tensor) -> Tensor:
    taps = [tap.index for tap in student.taps]
    indices = sorted({*taps, max(taps[-1] - 1, 0)})
    x = ((images.float() - student.mean) / student.std).requires_grad_()  # a graph, also where weights are frozen
    final, maps = student.backbone.forward_intermediates(x, indices=indices, output_fmt="NCHW")
    features = student.answer(final, [maps[indices.index(tap)] for tap in taps])
    assert features.logits is not None
    reached = nodes_of(features.pooled)
    last, before = maps[-1], maps[-2:][0]
    activations, weights = last, _weights(features.logits, last, reached, image_of, labels)
    if not weights.any() and before.shape[-2:] == last.shape[-2:]:
        activations, weights = before, _weights(features.logits, before, reached, image_of, labels)
    maps_of_pairs = (weights[..., None, None] * activations.detach()[image_of]).sum(1).relu().float()
    total = maps_of_pairs.sum((-2, -1), keepdim=True)
    return torch.where(total > 0, maps_of_pairs / total, 0)


def _weights(logits: Tensor, feature: Tensor, reached: set[Node], image_of: Tensor, labels: Tensor) -> Tensor:
    """Return alpha [P, channels]."""
    edge = _edge(feature, reached)
    weights = feature.new_zeros(len(labels), feature.shape[1])
    earlier = (image_of[:, None] == image_of).tril(-1).sum(1)  # pairs of the same image
    for turn in range(
        int(earlier.max()) + 1 if len(earlier) else 0
    ):  # the first pair of every image at once: images do not touch each other
        pairs = (earlier == turn).nonzero()[:, 0]
        chosen = logits[image_of[pairs], labels[pairs]].sum()
        (gradient,) = torch.autograd.grad(chosen, edge, retain_graph=True)
        weights[pairs] = _like(feature, edge, gradient).mean((-2, -1))[image_of[pairs]]
    return weights


def _edge(feature: Tensor, reached: set[Node]) -> GradientEdge:
    """Return the tensor that `feature` was taken from and that the pooled features go through.

    timm hands out a rearranged copy (without class tokens, channels first), which nothing else is computed from.
    """
    edge = feature_edge(feature, reached)
    if edge is None:
        raise _not_the_same()
    _require_rearranged(feature, edge)
    return edge


def _like(feature: Tensor, edge: GradientEdge, gradient: Tensor) -> Tensor:
    """Rearrange `gradient`, of the shape of the tensor at `edge`, as `feature` was rearranged.

    With feature = M tensor, a gradient v of the feature goes back as M^T v; the gradient of that by v, seeded with g,
    is M g.
    """
    seed = torch.zeros_like(feature, requires_grad=True)
    (back,) = torch.autograd.grad(feature, edge, seed, create_graph=True)
    (there,) = torch.autograd.grad(back, seed, gradient)
    return there


def _require_rearranged(feature: Tensor, edge: GradientEdge) -> None:
    """Raise unless the feature only moves values of the tensor at `edge`, without changing them: M M^T = 1."""
    values = feature.detach()
    (back,) = torch.autograd.grad(feature, edge, values, retain_graph=True)
    if not torch.equal(_like(feature, edge, back), values):
        raise _not_the_same()


def _not_the_same() -> ConfigError:
    return ConfigError(
        "Class maps need a backbone whose features are what its logits are made from; those of this one are computed "
        "on the side. Score its interaction maps alone, or choose another student."
    )


_BATCH = 64
_GRADIENT_BATCH = 16  # images: the whole graph is kept


def student_maps(
    student: Student, store: TargetStore, dataset: Dataset, positions: Sequence[int]
) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield each position with its words' maps per tap, fp32 [M, rows, columns] on the CPU."""
    device = next(student.parameters()).device
    assert isinstance(student.queries, TextQueries)
    vocabulary = torch.from_numpy(store.vocabulary.embeddings).float()
    images = _CachedSamples(student, store, dataset)
    for first in progress_bar(range(0, len(positions), _BATCH), desc="maps of words", unit="batch", leave=False):
        chunk = list(positions[first : first + _BATCH])
        pixels = images.read(chunk)
        words = vocabulary[torch.from_numpy(store.read_words(chunk)).long().clamp_min(0)].to(device)
        with torch.no_grad():
            features = student(pixels.to(device), with_taps=True)
            maps = student.queries.maps(words, features.taps)
        for row, position in enumerate(chunk):
            per_tap = zip(maps, features.grids, strict=True)
            yield position, [m[row].float().view(-1, *grid).cpu() for m, grid in per_tap]


def student_class_maps(
    student: Student, store: TargetStore, dataset: Dataset, pairs: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Return the Grad-CAM of each pair of position and class, fp32 [rows, columns] on the CPU, in the order of `pairs`.

    Raises:
        ConfigError: as `class_maps`.
    """
    device = next(student.parameters()).device
    images = _CachedSamples(student, store, dataset)
    positions = sorted({position for position, _ in pairs})
    grad_cams: dict[tuple[int, int], Tensor] = {}
    for first in progress_bar(range(0, len(positions), _GRADIENT_BATCH), desc="class maps", unit="batch", leave=False):
        row = {position: i for i, position in enumerate(positions[first : first + _GRADIENT_BATCH])}
        chosen = sorted({pair for pair in pairs if pair[0] in row})
        pixels = images.read(row).to(device)
        image_of, labels = torch.tensor([(row[position], label) for position, label in chosen], device=device).unbind(1)
        grad_cams |= dict(zip(chosen, class_maps(student, pixels, image_of, labels).cpu(), strict=True))
    return [grad_cams[pair] for pair in pairs]


class _CachedSamples:
    """Images of a cache's samples as the student takes them."""

    def __init__(self, student: Student, store: TargetStore, dataset: Dataset) -> None:
        self._images, self._size = PlainImages(dataset, [student.size]), student.size
        self._place = {sample.key: i for i, sample in enumerate(dataset.samples)}
        self._keys = store.index.keys

    def read(self, positions: Iterable[int]) -> Tensor:
        """Return uint8 [B, 3, H, W] of samples by their position in the cache."""
        return torch.stack([self._images[self._place[self._keys[position]]][0][self._size] for position in positions])

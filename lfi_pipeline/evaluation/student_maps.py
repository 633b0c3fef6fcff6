"""Where a student looks, of cached samples: its queries' interaction maps of words, and its class logits' Grad-CAM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from lfi_pipeline.data import Dataset
from lfi_pipeline.data.replay import WHOLE, view_maps
from lfi_pipeline.evaluation.class_maps import class_maps
from lfi_pipeline.students import LearnedQueries, Student, Supervision, Tap, TextQueries, pair_layers
from lfi_pipeline.targets import SampleTargets, TargetSpec, TargetStore, decode_maps
from lfi_pipeline.training.data import PlainImages

_BATCH = 64
_GRADIENT_BATCH = 16  # images: the whole graph is kept


def student_maps(
    student: Student, store: TargetStore, dataset: Dataset, positions: Sequence[int]
) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield each position with its words' maps per tap, fp32 [M, rows, columns] on the CPU.

    A learned slot knows no words: a word gets the maps of the slot that training would have matched to it, by the
    teacher's maps. A word without a slot gets zeros.
    """
    device, learned = next(student.parameters()).device, isinstance(student.queries, LearnedQueries)
    vocabulary = torch.from_numpy(store.vocabulary.embeddings).float()
    images = _CachedSamples(student, store, dataset)
    for first in tqdm(range(0, len(positions), _BATCH), desc="maps of words", unit="batch", leave=False):
        chunk = list(positions[first : first + _BATCH])
        pixels = images.read(chunk)
        read = store.read_many(chunk)
        words = vocabulary[torch.from_numpy(read.words).long().clamp_min(0)].to(device)
        told = Supervision(words, *_teacher_maps(student.taps, store.spec, read, device)) if learned else None
        with torch.no_grad():
            features = student(pixels.to(device), told, with_taps=True)
            if isinstance(student.queries, LearnedQueries):
                assert features.interaction is not None
                assert features.interaction.match is not None
                maps = _of_slots(student.queries.maps(features.taps), features.interaction.match)
            else:
                assert isinstance(student.queries, TextQueries)
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
    found: dict[tuple[int, int], Tensor] = {}
    for first in tqdm(range(0, len(positions), _GRADIENT_BATCH), desc="class maps", unit="batch", leave=False):
        row = {position: i for i, position in enumerate(positions[first : first + _GRADIENT_BATCH])}
        chosen = sorted({pair for pair in pairs if pair[0] in row})
        pixels = images.read(row).to(device)
        image_of, labels = torch.tensor([(row[position], label) for position, label in chosen], device=device).unbind(1)
        found |= dict(zip(chosen, class_maps(student, pixels, image_of, labels).cpu(), strict=True))
    return [found[pair] for pair in pairs]


class _CachedSamples:
    """Images of a cache's samples as the student takes them."""

    def __init__(self, student: Student, store: TargetStore, dataset: Dataset) -> None:
        self._images, self._size = PlainImages(dataset, [student.size]), student.size
        self._place = {sample.key: i for i, sample in enumerate(dataset.samples)}
        self._keys = store.index.keys

    def read(self, positions: Iterable[int]) -> Tensor:
        """Return uint8 [B, 3, H, W] of samples by their position in the cache."""
        return torch.stack([self._images[self._place[self._keys[position]]][0][self._size] for position in positions])


def _teacher_maps(
    taps: Sequence[Tap], spec: TargetSpec, read: SampleTargets, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Return per tap the teacher's maps of the whole image [B, M, N_t], and the weights [B, M] of their words."""
    stored = decode_maps(torch.from_numpy(read.maps), torch.from_numpy(read.scale), spec.codec.name).to(device)
    whole = torch.tensor([WHOLE.window], device=device).expand(len(stored), 4)
    targets = []
    for tap, layer in zip(taps, pair_layers(taps, [layer.depth for layer in spec.layers]), strict=True):
        mass = view_maps(stored[:, layer], whole, tap.grid).flatten(-2)
        targets.append(mass / mass.sum(-1, keepdim=True).clamp_min(1e-12))
    return targets, [target.sum(-1) for target in targets]


def _of_slots(maps: Sequence[Tensor], match: Tensor) -> list[Tensor]:
    """Return per tap the map of each word's slot [B, M, N_t], of maps [B, K, N_t] and slots [B, M]; -1: zeros."""
    matched = (match >= 0)[..., None]
    return [each.gather(1, match.clamp_min(0)[..., None].expand(-1, -1, each.shape[-1])) * matched for each in maps]

"""Score a finished run: mAP on seen and held-out domains, and where the student's queries look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.data.replay import WHOLE, view_maps
from lfi_pipeline.errors import ConfigError
from lfi_pipeline.evaluation.gallery import write_gallery
from lfi_pipeline.evaluation.grounding import (
    GroundedWord,
    grounded_words,
    peaks_in_mask,
    score,
    teacher_grounding,
)
from lfi_pipeline.students import LearnedQueries, Student, Supervision, Tap, TextQueries, pair_layers
from lfi_pipeline.targets import SampleTargets, TargetSpec, TargetStore, decode_maps
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.loading import LoadedRun, load_run
from lfi_pipeline.training.run_dir import write_json
from lfi_pipeline.training.tasks import NONE
from lfi_pipeline.training.validate import predict, score_domains

SCORES = "scores.json"
_BATCH = 64


def evaluate_run(
    run: Path,
    *,
    targets: Path | None = None,
    data_root: Path | None = None,
    weights: str = "last",
    gallery: int = 12,
    device: str = "auto",
) -> dict[str, Any]:
    """Score `run`, write `scores.json` (and a gallery) into it, and return the scores.

    Args:
        run: directory of a run.
        targets: a cache of the validation split, made by the teacher of the training cache; without one, only the
            mAPs are scored, since words and teacher maps of the validation images are not known.
        data_root: where the data set lies, if it has moved since the run.
        weights: `last` or `best`.
        gallery: how many samples to keep with their maps for the report.
        device: `auto` takes CUDA where there is one.

    Raises:
        ConfigError: `targets` is of another teacher or data set than the run's, or `gallery` is negative.
        DatasetError: `targets` is of another split than the run is scored on.
    """
    if gallery < 0:
        raise ConfigError(f"gallery must be 0 or more, got {gallery}.")
    loaded = load_run(run, device=device, weights=weights, data_root=data_root)
    dataset = read_dataset(loaded.store.spec.dataset.name, loaded.store.source_root, loaded.config.val_split)
    scores: dict[str, Any] = {"weights": weights, "taps": [], "teacher": None, "area": None}
    if loaded.task != NONE:
        (predictions,) = predict([loaded.student], dataset, loaded.task, next(loaded.student.parameters()).device)
        domains = [sample.domain for sample in dataset.samples]
        scores |= score_domains(predictions, loaded.task, domains, frozenset(loaded.record["seen_domains"]))
    if targets is not None:
        scores |= _grounding(loaded, dataset, targets, gallery)
    write_json(run / SCORES, scores)
    return scores


def _grounding(loaded: LoadedRun, dataset: Dataset, targets: Path, gallery: int) -> dict[str, Any]:
    store = TargetStore.open(targets, data_root=loaded.store.source_root)
    _require_same_teacher(loaded.store, store)
    words = grounded_words(store, dataset)
    teacher = teacher_grounding(store, words)[-1]
    learned = isinstance(loaded.student.queries, LearnedQueries)
    result: dict[str, Any] = {"teacher": asdict(teacher), "area": teacher.area, "taps": []}
    result["slots_matched_by_teacher"] = learned
    student_maps: dict[int, list[Tensor]] = {}
    if loaded.student.queries is not None:
        positions = sorted({word.position for word in words})
        student_maps = dict(_student_maps(loaded.student, store, dataset, positions))
        masks = [word.mask for word in words]
        for number, tap in enumerate(loaded.student.taps):
            grounding = score([student_maps[word.position][number][word.row] for word in words], masks)
            result["taps"].append({"index": tap.index, "depth": tap.depth} | asdict(grounding))
    if gallery:
        chosen = _gallery_positions(words, student_maps, gallery)
        write_gallery(loaded.path, store, dataset, words, student_maps, chosen)
    return result


def _student_maps(
    student: Student, store: TargetStore, dataset: Dataset, positions: Sequence[int]
) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield each position with its words' maps per tap, fp32 [M, rows, columns] on the CPU.

    A learned slot knows no words: a word gets the maps of the slot that training would have matched to it, by the
    teacher's maps. A word without a slot gets zeros.
    """
    device, learned = next(student.parameters()).device, isinstance(student.queries, LearnedQueries)
    vocabulary = torch.from_numpy(store.vocabulary.embeddings).float()
    place = {sample.key: i for i, sample in enumerate(dataset.samples)}
    images, keys = PlainImages(dataset, [student.size]), store.index.keys
    for first in range(0, len(positions), _BATCH):
        chunk = list(positions[first : first + _BATCH])
        pixels = torch.stack([images[place[keys[position]]][0][student.size] for position in chunk])
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


def _gallery_positions(words: Sequence[GroundedWord], student_maps: dict[int, list[Tensor]], count: int) -> list[int]:
    """Choose samples evenly spaced from the student's worst to its best, so that failures are shown as well."""
    hits: dict[int, list[bool]] = {}
    for word in words:
        maps = student_maps.get(word.position)
        hit = bool(peaks_in_mask(maps[-1][word.row][None], word.mask[None])) if maps else True
        hits.setdefault(word.position, []).append(hit)
    ranked = sorted(hits, key=lambda position: (float(np.mean(hits[position])), position))
    spread = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[i] for i in spread]


def _require_same_teacher(trained: TargetStore, given: TargetStore) -> None:
    for name, ours, theirs in (
        ("teacher", trained.spec.teacher, given.spec.teacher),
        ("data set", trained.spec.dataset.name, given.spec.dataset.name),
        ("classes", trained.spec.dataset.classes, given.spec.dataset.classes),
    ):
        if ours != theirs:
            raise ConfigError(
                f"The validation targets must have the {name} of the training targets; {given.path} has {theirs}, "
                f"{trained.path} has {ours}."
            )

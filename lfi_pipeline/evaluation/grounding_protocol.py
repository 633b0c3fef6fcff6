"""Protocol `grounding`: do the student's maps look at the object that the word names, and do the teacher's?

Of every word that names a class with a mask: the pointing game and the mass in the mask (`evaluation.grounding`), and
the IoU at the best threshold (also there), which name their sources. They are taken of the interaction
maps at each tap of the student, of the teacher's cached maps at each of its layers, and of the student's own class
logits (Grad-CAM, `evaluation.maps`), which every student with a head has. How much a word's map changes from one
tap or layer to the next is measured by a divergence (`evaluation.grounding.jensen_shannon`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.io import sorted_safetensors
from lfi_pipeline.core.parse import write_recorded
from lfi_pipeline.data import Dataset
from lfi_pipeline.data.images import read_image
from lfi_pipeline.evaluation.config import EvaluationConfig, GroundingConfig
from lfi_pipeline.evaluation.grounding import (
    GroundedWord,
    WordMasks,
    best_overlap,
    grounded_words,
    peaks_in_mask,
    score,
    tap_divergences,
    teacher_maps,
    word_classes,
)
from lfi_pipeline.evaluation.maps import student_class_maps, student_maps
from lfi_pipeline.evaluation.protocols import ProtocolResult, load, scored_split, settings_of
from lfi_pipeline.students import Student
from lfi_pipeline.students.student import merged_maps
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.targets.verify import evenly_spaced
from lfi_pipeline.training.run_dir import write_run_json

_LARGEST_SIDE = 320


def write_gallery(
    run: Path,
    store: TargetStore,
    dataset: Dataset,
    words: Sequence[GroundedWord],
    student_maps: Mapping[int, Sequence[Tensor]],
    class_maps: Mapping[tuple[int, int], Tensor],
    positions: Sequence[int],
) -> None:
    """Write `gallery.json` and `gallery.safetensors` into `run`.

    Of sample N, `teacher_N` [M, gh, gw] and `student_N` [taps, M, rows, columns] are interaction maps of its M words,
    and `cam_N` [M, rows, columns] the class maps of those words that name a class (`classes` says which), zeros for
    other words.

    Args:
        words: words with masks; others are drawn without a verdict.
        student_maps: position -> per tap [M, rows, columns]; empty for a student without queries.
        class_maps: (position, class) -> Grad-CAM [rows, columns]; empty for a student without a head.
        positions: samples to keep, in the cache's numbering.
    """
    class_of = word_classes(store, dataset)
    word_of = {(word.position, word.row): word for word in words}
    place = {sample.key: i for i, sample in enumerate(dataset.samples)}
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    for number, position in enumerate(positions):
        sample = dataset.samples[place[store.index.keys[position]]]
        image, _, _ = read_image(dataset.root, sample.path)
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        targets = store.read(position)
        rows = [row for row, word in enumerate(targets.words.tolist()) if word >= 0]
        teacher = decode_maps(
            torch.from_numpy(targets.maps[-1]), torch.from_numpy(targets.scale[-1]), store.spec.codec.name
        )[rows]
        named = [word_of.get((position, row)) for row in rows]
        masks = [None if word is None else word.mask for word in named]
        tensors[f"image_{number}"] = torch.from_numpy(np.array(image))
        tensors[f"teacher_{number}"] = teacher.half().contiguous()
        per_tap = [maps[rows] for maps in student_maps.get(position, ())]
        if per_tap:
            finest = max((maps.shape[-2:] for maps in per_tap), key=lambda grid: grid[0] * grid[1])
            tensors[f"student_{number}"] = torch.stack([_on_grid(m, finest) for m in per_tap]).half().contiguous()
        labels = [class_of[targets.words[row]] for row in rows]
        seen = [None if label is None else class_maps.get((position, label)) for label in labels]
        cams = _stacked(seen)
        if cams is not None:
            tensors[f"cam_{number}"] = cams.half().contiguous()
        entries.append(
            {
                "key": sample.key,
                "caption": store.index.captions[position],
                "domain": sample.domain,
                "words": [store.vocabulary.words[targets.words[row]] for row in rows],
                "teacher_correct": _verdicts(teacher, masks),
                "student_correct": [_verdicts(maps, masks) for maps in per_tap],
                "classes": labels,
                "cam_correct": [] if cams is None else _verdicts(cams, masks),
            }
        )
    write_recorded(run, "gallery.safetensors", sorted_safetensors(save(tensors)))
    write_run_json(run, "gallery.json", {"samples": entries})


def _stacked(maps: Sequence[Tensor | None]) -> Tensor | None:
    """Stack the maps of M words, [M, rows, columns], zeros for a word without one; None where no word has one."""
    blank = next((torch.zeros_like(each) for each in maps if each is not None), None)
    return None if blank is None else torch.stack([blank if each is None else each for each in maps])


def _verdicts(maps: Tensor, masks: Sequence[Tensor | None]) -> list[bool | None]:
    return [
        None if mask is None else bool(peaks_in_mask(row[None], mask[None]))
        for row, mask in zip(maps, masks, strict=True)
    ]


def _on_grid(maps: Tensor, grid: torch.Size) -> Tensor:
    """Put maps [M, h, w] of a coarser tap on the finest tap's grid, mass preserved."""
    if maps.shape[-2:] == grid:
        return maps
    enlarged = torch.nn.functional.interpolate(maps[None], tuple(grid), mode="nearest-exact")[0]
    return enlarged / enlarged.sum((-2, -1), keepdim=True).clamp_min(1e-12)


MAP_SCORES = ("pointing", "mass_in_mask", "iou")


def grounding(run: Path, common: EvaluationConfig, config: GroundingConfig) -> ProtocolResult:
    """Score the maps of `run` and of its teacher, and write the gallery into the run.

    Scores are those of the last tap and the teacher's last layer, and `tap_divergence` the mean over pairs of
    consecutive taps. Of a query head they are those of the map that goes with its answers, made of all taps
    (`students.student.merged_maps`). `details` holds every tap and layer, and `area`, the share of the image that
    masks cover: what a random peak scores, and a uniform map's mass and IoU. A student without queries has its class
    maps and the teacher's scores alone, one without a head no class maps.

    Raises:
        ConfigError: the targets are of another teacher or data set than the run's.
        DatasetError: the targets are of another split than the run is scored on, or nothing in it has a mask.
    """
    began = time.monotonic()
    loaded = load(run, common)
    student, dataset = loaded.student, scored_split(loaded, config.split)
    store = TargetStore.open(config.targets, data_root=loaded.store.source_root)
    _require_same_teacher(loaded.store, store)
    words = grounded_words(store, dataset)
    maps: dict[int, list[Tensor]] = {}
    if student.queries is not None:
        maps = dict(student_maps(student, store, dataset, sorted({word.position for word in words})))
    class_maps, missing = _class_maps(student, store, dataset, words)
    depths = student.taps if maps else ()
    own = [[maps[word.position][number][word.row] for word in words] for number in range(len(depths))]
    masks = WordMasks(words)
    layers = _scored([list(each) for each in teacher_maps(store, words)], masks)
    taps = _scored(own, masks)
    answers = _scored([_merged(own)], masks)[0] if student.query_head is not None else None
    cam = _scored([class_maps], masks)[0] if class_maps else {}
    if config.gallery:
        positions = _gallery_positions(words, (own or [class_maps])[-1], config.gallery)
        write_gallery(run, store, dataset, words, maps, _shown(student, store, dataset, positions, cam), positions)
    teacher, last = layers[-1], answers or (taps[-1] if taps else {})
    return ProtocolResult(
        protocol="grounding",
        settings=settings_of(dataset, common, targets=store.spec.fingerprint),
        scores={
            **{name: last[name] for name in MAP_SCORES if last},
            **({"tap_divergence": _mean([tap["divergence"] for tap in taps])} if taps else {}),
            **{f"cam_{name}": cam[name] for name in MAP_SCORES[:2] if cam},
            **{f"teacher_{name}": teacher[name] for name in MAP_SCORES},
        },
        details={
            "taps": [{"index": t.index, "depth": t.depth} | scores for t, scores in zip(depths, taps, strict=True)],
            "answers": answers,
            "teacher": teacher,
            "teacher_layers": [
                {"name": layer.name, "depth": layer.depth} | scores
                for layer, scores in zip(store.spec.layers, layers, strict=True)
            ],
            "cam": cam or None,
            "cam_missing": missing,
            "area": teacher["area"],
        },
        seconds=time.monotonic() - began,
    )


def _scored(maps: Sequence[Sequence[Tensor]], masks: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Score the words' maps at each depth.

    `divergence` is from the depth before, None at the first; `empty` the share of maps of zeros, which score 0.
    """
    divergences = [None, *tap_divergences([torch.stack(list(each)) for each in maps])]
    scores = []
    for each, divergence in zip(maps, divergences[: len(maps)], strict=True):
        overlap = best_overlap(each, masks)
        assert overlap is not None  # there are words
        empty = sum(not bool(one.any()) for one in each) / len(each)
        depth_scores = {"empty": empty, "iou": overlap.iou, "threshold": overlap.threshold, "divergence": divergence}
        scores.append(asdict(score(each, masks)) | depth_scores)
    return scores


def _merged(taps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return each word's maps merged over the taps, [rows, columns] each, as `merged_maps`."""
    stacked = [torch.stack(list(each)) for each in taps]  # [P, rows, columns], of one student
    grids = [(int(each.shape[1]), int(each.shape[2])) for each in stacked]
    return list(merged_maps([each.flatten(1)[None] for each in stacked], grids)[0])


def _class_maps(
    student: Student, store: TargetStore, dataset: Dataset, words: Sequence[GroundedWord]
) -> tuple[list[Tensor], str | None]:
    """Return the class map of each word and None, or an empty list and the reason that there are none."""
    try:
        return student_class_maps(student, store, dataset, [(word.position, word.label) for word in words]), None
    except ConfigError as error:
        return [], str(error)


def _shown(
    student: Student, store: TargetStore, dataset: Dataset, positions: Sequence[int], cam: Mapping[str, Any]
) -> dict[tuple[int, int], Tensor]:
    """Return the class maps of all words of the gallery that name a class, with a mask or not."""
    if not cam:
        return {}
    class_of = word_classes(store, dataset)
    words = zip(positions, store.read_words(positions).tolist(), strict=True)
    named = [(position, class_of[word]) for position, row in words for word in row if word >= 0]
    pairs = [(position, label) for position, label in named if label is not None]
    return dict(zip(pairs, student_class_maps(student, store, dataset, pairs), strict=True))


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _gallery_positions(words: Sequence[GroundedWord], maps: Sequence[Tensor], count: int) -> list[int]:
    """Choose samples evenly spaced from the student's worst to its best, so that failures are shown as well.

    Args:
        words: with masks.
        maps: of each word, the one to judge by; empty where the student has none, and all samples are alike.
        count: at most.
    """
    hits: dict[int, list[bool]] = {}
    for i, word in enumerate(words):
        hit = bool(peaks_in_mask(maps[i][None], word.mask[None])) if maps else True
        hits.setdefault(word.position, []).append(hit)
    ranked = sorted(hits, key=lambda position: (float(np.mean(hits[position])), position))
    return [ranked[i] for i in evenly_spaced(np.arange(len(ranked)), count).tolist()]


def _require_same_teacher(trained: TargetStore, validation: TargetStore) -> None:
    for name, ours, theirs in (
        ("teacher", trained.spec.teacher, validation.spec.teacher),
        ("data set", trained.spec.dataset.name, validation.spec.dataset.name),
        ("classes", trained.spec.dataset.classes, validation.spec.dataset.classes),
    ):
        if ours != theirs:
            raise ConfigError(
                f"The validation targets must have the {name} of the training targets; {validation.path} has {theirs}, "
                f"{trained.path} has {ours}."
            )

"""Keep a few samples with the teacher's and the student's maps, for the report to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from lfi_pipeline.data import Dataset
from lfi_pipeline.data.images import read_image
from lfi_pipeline.evaluation.grounding import GroundedWord, peaks_in_mask, word_classes
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.training.run_dir import write_json

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
    mask_of = {(word.position, word.row): word.mask for word in words}
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
        masks = [mask_of.get((position, row)) for row in rows]
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
    save_file(tensors, run / "gallery.safetensors")
    write_json(run / "gallery.json", {"samples": entries})


def _stacked(maps: Sequence[Tensor | None]) -> Tensor | None:
    """Return [M, rows, columns], zeros where there is no map; None where there is none at all."""
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

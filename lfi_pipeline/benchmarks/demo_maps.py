"""Real maps of the demo teacher on the grid that the cache is judged by: 4 layers x 16 words x 16 x 16 cells.

How a sample is made, none of it invented:

- `scenes` are rendered and read by `scenes-coca` with their own captions; every content word gives one row.
- The 4 layers are 4 kinds of map of that word, from the smoothest to the sparsest: `attention` and `gradcam` at the
  last decoder layer, `relevance`, and the default `agreement`. Words that have no map in one of them are left out.
- A caption of `scenes` has fewer than 16 content words, so rows are packed: the words of the first scene in reading
  order, then those of the next, until 16 are together. Every row stays the whole map of one word of one image.
- The teacher's grid is 8 x 8. `resize` enlarges it bilinearly (cells' middles aligned) and renormalises: smoother than
  a real 16 x 16 map, so easier for a lossless compressor. `mosaic` lays four rows of one kind side by side, a quarter
  of the mass each: as rough as maps get, a bound from the other side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.images import read_image
from lfi_pipeline.data.replay import WHOLE, view_image
from lfi_pipeline.data.scenes import ScenesConfig, write_scenes
from lfi_pipeline.errors import UnknownNameError
from lfi_pipeline.teachers import load_teacher

LAYER_KINDS = ("attention", "gradcam", "relevance", "agreement")
WORDS = 16
GRID = 16
WORDS_A_SCENE = 3
"""Fewer than any caption of `scenes` has on average; decides how many scenes are rendered at first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DemoMaps:
    """Maps to encode.

    Attributes:
        maps: fp32 [n, 4, 16, 16, 16], rows sum to 1.
        scenes: images that were read for them.
    """

    maps: npt.NDArray[np.float32]
    scenes: int


def demo_maps(samples: int, form: str, scratch: Path, *, batch_size: int = 32) -> DemoMaps:
    """Make `samples` samples.

    Args:
        samples: how many.
        form: `resize` or `mosaic`.
        scratch: an empty folder in which scenes may be rendered.
        batch_size: scenes per pass of the teacher.

    Raises:
        UnknownNameError: no such form.
    """
    if form not in FORMS:
        raise UnknownNameError("form of maps", form, FORMS)
    wanted = samples * WORDS * (4 if form == "mosaic" else 1)
    rows: list[Tensor] = []  # each [words, 4, 8, 8]
    found = scenes = 0
    with tqdm(total=wanted, desc="maps of scenes", unit="row", leave=False) as bar:
        while found < wanted:  # a few words have no map in one of the kinds, so the first rendering may fall short
            count = max(batch_size, (wanted - found) // WORDS_A_SCENE)
            for part in _rows(scratch / f"scenes-{scenes}", count, scenes, batch_size):
                rows.append(part)
                found += len(part)
                bar.update(len(part))
                if found >= wanted:
                    break
            scenes += count
    packed = FORMS[form](torch.cat(rows)[:wanted])  # [samples * 16, 4, 16, 16]
    maps = packed.view(samples, WORDS, len(LAYER_KINDS), GRID, GRID).transpose(1, 2)
    return DemoMaps(maps=np.ascontiguousarray(maps.numpy(), dtype=np.float32), scenes=scenes)


def _rows(root: Path, count: int, seed: int, batch_size: int) -> list[Tensor]:
    write_scenes(root, ScenesConfig(train=count, val=1, seed=seed), workers=1)
    dataset = read_dataset("scenes", root, "train")
    teacher = load_teacher("scenes-coca")
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (teacher.mean, teacher.std))
    parts = []
    for first in range(0, count, batch_size):
        samples = dataset.samples[first : first + batch_size]
        pixels = [view_image(read_image(root, s.path)[0], WHOLE, teacher.image_size) for s in samples]
        images = (torch.from_numpy(np.stack(pixels)).float() - mean) / std
        texts = [teacher.encode_text(sample.captions[0]) for sample in samples]
        words = [text.words for text in texts]
        kinds = [
            teacher.interaction_maps(images, texts, words, kind=kind, layers=teacher.layers(kind, 1)).maps[:, 0]
            for kind in LAYER_KINDS
        ]
        maps = torch.stack(kinds, dim=2).flatten(0, 1)  # [B * M, 4, 8, 8]
        parts.append(maps[(maps.flatten(2).sum(-1) > 0).all(1)])
    return parts


def _resize(rows: Tensor) -> Tensor:
    large = nn.functional.interpolate(rows, size=(GRID, GRID), mode="bilinear", align_corners=False)
    return large / large.sum((-2, -1), keepdim=True)


def _mosaic(rows: Tensor) -> Tensor:
    quarters = rows.view(-1, 4, *rows.shape[1:])  # [R, 4, L, 8, 8]
    top, bottom = torch.cat([quarters[:, 0], quarters[:, 1]], -1), torch.cat([quarters[:, 2], quarters[:, 3]], -1)
    return torch.cat([top, bottom], -2) / 4


FORMS: dict[str, Callable[[Tensor], Tensor]] = {"resize": _resize, "mosaic": _mosaic}
